"""The harness' tasks in a case: what is measured, what makes it another case, and what the gate says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from quambench.case import Case, Protocol
from quambench.core.errors import BadParameter, UnknownName
from quambench.data.corpus import load_corpus
from quambench.gate.comparisons import compare, gated
from quambench.gate.record import record_of
from quambench.gate.verdicts import judge
from quambench.harness.asking import Tasks
from quambench.harness.running import load_tasks, run_tasks
from quambench.harness.subject import case_subject
from quambench.models.checkpoint import load_checkpoint
from quambench.run.runner import ModelRun

SMALL = Protocol(
    calib_windows=6, calib_length=16, quality_windows=8, quality_length=32, decode_windows=6, decode_prefix=8,
    decode_steps=6, error_windows=4, error_length=16, max_items=12,
)  # fmt: skip
TASK = "prose_lambada"


@pytest.fixture(scope="module")
def run(world: Path) -> ModelRun:
    checkpoint, corpus = load_checkpoint(str(world / "tiny-model")), world / "corpus"
    asked = {"tasks": (TASK,), "task_limit": 24}
    cases = [Case.parse(checkpoint.name, spec, SMALL) for spec in ("running_max", "running_max/w3a3")]
    cases += [replace(case, **asked) for case in cases]
    return ModelRun(checkpoint, load_corpus(corpus), cases, tasks=Tasks(corpus))


@pytest.fixture(scope="module")
def records(run: ModelRun) -> dict[str, Any]:
    return {case.id: record_of(run.result(case), {}) for case in run.cases}


def test_the_answers_are_the_harness_own(run: ModelRun, records: dict[str, Any], world: Path) -> None:
    case = run.cases[2]
    (theirs,) = run_tasks(case_subject(run, case, starts=False), load_tasks([TASK], corpus=world / "corpus"), limit=24)
    evidence = records[case.id].evidence
    assert torch.equal(evidence[f"task.{TASK}.value"], theirs.values)
    assert torch.equal(evidence[f"task.{TASK}.log_likelihood"], theirs.log_likelihoods)
    assert records[case.id].metrics[f"task_{TASK}"].value == theirs.values.mean()
    assert records[case.id].metrics[f"task_{TASK}_nats"].value == pytest.approx(theirs.log_likelihoods.mean().item())


def test_a_case_that_asks_is_another_case_and_one_that_does_not_stays_as_it_was(
    run: ModelRun, records: dict[str, Any]
) -> None:
    plain, asking = records[run.cases[0].id], records[run.cases[2].id]
    assert asking.case_id == f"{plain.case_id}/tasks={TASK}:24"
    assert set(asking.settings) - set(plain.settings) == {"tasks", "task_data"}
    assert not any(name.startswith("task") for name in (*plain.settings, *plain.metrics, *plain.evidence))
    more = replace(run.cases[2], task_limit=23)
    other = ModelRun(run.checkpoint, run.corpus, [more], tasks=run._tasks)
    assert other.settings(more)["task_data"] != asking.settings["task_data"]


def test_what_the_gate_compares(run: ModelRun, records: dict[str, Any]) -> None:
    """The same model is the same; three bits change the answers' likelihoods for sure, and the metric is named."""
    good, bad = records[run.cases[2].id], records[run.cases[3].id]
    assert {f"task_{TASK}", f"task_{TASK}_nats"} <= set(gated(good.evidence))
    assert f"task_{TASK}_float" not in gated(good.evidence)
    assert judge(good, good, 1).status == "SAME"
    found = {c.metric: c for c in compare(good.evidence, bad.evidence, good.noise, 0.01)}
    assert found[f"task_{TASK}_nats"].paired.n == 24
    assert found[f"task_{TASK}_nats"].paired.difference != 0
    right = good.evidence[f"task.{TASK}.value"]
    assert bool(((right == 0) | (right == 1)).all())


def test_nobody_asks_where_nobody_was_told_how(run: ModelRun) -> None:
    silent = ModelRun(run.checkpoint, run.corpus, [run.cases[2]])
    with pytest.raises(BadParameter, match="nobody here asks them"):
        silent.result(run.cases[2])


def test_an_unknown_task_is_one_line() -> None:
    with pytest.raises(UnknownName, match="prose_lambda") as error:
        Tasks().check(("prose_lambda",))
    assert "\n" not in str(error.value)
