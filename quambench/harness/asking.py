"""The harness' tasks as part of a case: its quantized model answers them and, once, the float model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quambench.case import Case
from quambench.evaluation.decoding import Model
from quambench.harness import check_installed
from quambench.harness.subject import Subject, float_subject, quantized_subject
from quambench.models.checkpoint import Checkpoint

FLOAT = "float64"  # as in every comparison with float: the same on every machine


class Tasks:
    """The tasks and the float models' answers, each loaded or computed once for all cases that share them."""

    def __init__(self, corpus: Path | None = None, device: str = "cpu") -> None:
        """Remember the corpus and the float model's device; a quantized model stays on its own."""
        self._corpus, self._device = corpus, torch.device(device)
        self._loaded: dict[tuple[str, ...], Any] = {}
        self._of_float: dict[tuple[object, ...], Sequence[Any]] = {}

    def evidence(self, checkpoint: Checkpoint, case: Case, model: Model, digest: str) -> dict[str, Tensor]:
        """Return evidence as quambench/metrics/tasks.py reads it.

        digest  hash of what decides the model's answers
        raises MissingExtra, UnknownName, BadParameter
        """
        from quambench.harness.running import run_tasks, task_evidence

        loaded, limit = self._load(case.tasks), case.task_limit or None
        subject = quantized_subject(checkpoint, model, digest, case.id, checkpoint.bundled)
        return task_evidence(run_tasks(subject, loaded, limit), self._float(checkpoint, case, loaded))

    def digest(self, checkpoint: Checkpoint, case: Case) -> str:
        """Return a hash of the documents that a case's tasks ask about."""
        found = self._float(checkpoint, case, self._load(case.tasks))
        return hashlib.sha256(" ".join(result.digest for result in found).encode()).hexdigest()

    def check(self, names: tuple[str, ...]) -> None:
        """Check that there are tasks of these names. raises MissingExtra, UnknownName, BadCorpus"""
        self._load(names)

    def _load(self, names: tuple[str, ...]) -> Any:
        if names not in self._loaded:
            check_installed()
            from quambench.harness.running import load_tasks

            self._loaded[names] = load_tasks(names, corpus=self._corpus)
        return self._loaded[names]

    def _float(self, checkpoint: Checkpoint, case: Case, loaded: Any) -> Sequence[Any]:
        from quambench.harness.running import run_tasks

        # A folder's copy of a bundled model has its weights, and reads texts otherwise.
        key = checkpoint.digest, checkpoint.bundled, checkpoint.tokenizer.digest, case.tasks, case.task_limit
        if key not in self._of_float:
            subject: Subject = float_subject(checkpoint, checkpoint.bundled, FLOAT, self._device)
            self._of_float[key] = run_tasks(subject, loaded, case.task_limit or None)
        return self._of_float[key]
