"""Training of scales on the whole model's output, through a straight-through estimator."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quambench.calibration.refine.base import REFINEMENTS, Progress, Refined
from quambench.calibration.refine.training import (
    Parts,
    Scales,
    Trained,
    check_symmetric,
    descend,
    hard_tap,
    straight_through,
    taught,
    trained_sites,
)
from quambench.calibration.scales import Calibration
from quambench.core.errors import BadParameter
from quambench.int8.model import QuantizedModel
from quambench.models.backbone import LanguageModel, Tap, forward_in_pieces, no_tap

LOSSES = ("kl", "nll")


@REFINEMENTS.register("learned")
@dataclass(frozen=True)
class Learned(Trained):
    """Scales learned as in LSQ (Esser et al. 2020, arXiv:1902.08153), with weights fixed as the INT8 model has them.

    The defaults take 3 s of one core on mamba-tiny and mamba2-tiny (AVX-512; 11 s on AVX2). KL to float in
    nats/token on the evaluation part, prefill and decoding, before -> after, from percentile[alpha=0.9995]:

        mamba-tiny   w8a8  0.0142 -> 0.0094   0.0250 -> 0.0182     mamba2-tiny  0.0054 -> 0.0045   0.0072 -> 0.0062
                     w8a6  0.164  -> 0.052    0.224  -> 0.069                   0.042  -> 0.026    0.059  -> 0.034
                     w8a4  6.8    -> 2.2      7.0    -> 2.6                     1.63   -> 0.30     1.97   -> 0.35

    At most 0.03 of the start's loss was gained on the training part and not on the validation part (`Refined.gap`):
    some tens of scales do not learn 768 tokens by heart. With loss=nll mamba2-tiny did as well at w8a4, and at w8a8
    no step bettered the start: so few labels are too noisy.
    """

    loss: str = "kl"  # kl: to the float model's next-token distribution; nll: of the next token itself. nats/token

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise BadParameter(f"loss must be {' or '.join(LOSSES)} (got {self.loss!r})")
        super().__post_init__()

    @torch.no_grad()
    def refine(
        self,
        prepared: LanguageModel,
        quantized: QuantizedModel,
        start: Calibration,
        sequences: Tensor,
        progress: Progress = lambda done, total: None,
    ) -> Refined:
        began = time.perf_counter()
        check_symmetric(start, "learned")
        parts = Parts.of(sequences, int(self.train), int(self.validation), int(self.length))
        model, sites = taught(prepared, quantized), trained_sites(quantized)
        scales, steps = Scales(start, prepared.config, sites), int(self.steps)
        aims = {id(part): self._log_probs(prepared, part, no_tap) for part in (parts.train, parts.validation)}

        def loss(step: int) -> Tensor:
            rows = parts.rows(step, int(self.batch))
            tokens, aim = parts.train[rows], aims[id(parts.train)][rows]
            return self._loss(self._log_probs(model, tokens, scales.tap(straight_through)), tokens, aim)

        def judged(calibration: Calibration, tokens: Tensor) -> float:
            tap = hard_tap(prepared.config, calibration, sites)
            return self._loss(self._log_probs(model, tokens, tap), tokens, aims[id(tokens)]).item()

        best = descend(
            scales,
            loss,
            lambda calibration: judged(calibration, parts.validation),
            steps,
            self.rate,
            int(self.every),
            lambda done: progress(done, steps),
        )
        return Refined(
            calibration=best.calibration,
            losses={
                "train.start": judged(start, parts.train),
                "train.end": judged(best.calibration, parts.train),
                "validation.start": best.start_loss,
                "validation.end": best.loss,
            },
            best_step=best.step,
            steps=best.steps,
            seconds=time.perf_counter() - began,
        )

    def _log_probs(self, model: LanguageModel, tokens: Tensor, tap: Tap) -> Tensor:
        """Return log-probabilities (B, L, vocab_size) float64 of tokens (B, L)."""
        return F.log_softmax(forward_in_pieces(model, tokens, int(self.piece), tap), -1)

    def _loss(self, log_probs: Tensor, tokens: Tensor, aim: Tensor) -> Tensor:
        """Return the loss in nats/token."""
        if self.loss == "nll":
            return -log_probs[:, :-1].gather(-1, tokens[:, 1:, None]).mean()
        return (aim.exp() * (aim - log_probs)).sum(-1).mean()
