"""Probes of the operators: every implementation that can run here is asked, whichever this machine would choose.

All of an operator's must give one stored answer, the reference's; what cannot run here is not asked and says nothing.
Triton's run on a GPU where there is one, else interpreted in another process (interpreted.py). The packages mamba_ssm
and causal_conv1d are not asked: their kernels, which are not ours, promise no bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from quambench_kernels import dispatch, upstream
from quambench_kernels.lazy import why_not

from quambench.gate.probes import interpreted
from quambench.gate.probes.base import Answer, Probe, Streams
from quambench.gate.probes.operators import QUESTIONS, Differentiable, Implementation, Question, gradients
from quambench.gate.probes.resting import all_of, every_case, of_kind, refined

TRITON, REFERENCE = "triton", "reference"
GRADIENT = "gradient"


def probes() -> Iterator[Probe]:
    for op, question in QUESTIONS.items():
        shares = f"kernel/{op}"
        own = of_kind(question.architecture) if question.architecture else every_case
        for ask in _implementations(op):
            yield Probe(
                f"{shares}/{ask.name}", partial(_asked, question, ask), shares, ask.name == REFERENCE, rests=own
            )
        if TRITON in dispatch.implementations(op) and not torch.cuda.is_available() and why_not() is None:
            yield Probe(f"{shares}/{TRITON}", partial(_interpreted, op), shares, defines=False, partial=True, rests=own)
        if question.gradients:
            yield Probe(f"{shares}/{GRADIENT}", partial(_gradients, op), rests=all_of(own, refined))


def _asked(question: Question, ask: Implementation, streams: Streams) -> Answer:
    return question(ask)


def _interpreted(op: str, streams: Streams) -> Answer:
    return interpreted.answer(op)


def _gradients(op: str, streams: Streams) -> Answer:
    return gradients(op)


def _implementations(op: str) -> Iterator[Implementation]:
    """Those that run in this process, on the device that they are for; the reference first."""
    names = sorted(dispatch.implementations(op), key=lambda name: name != REFERENCE)
    for name in names:
        if name not in upstream.NAMES:
            for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
                if dispatch.obstacle(op, name, torch.device(device)) is None:
                    yield Implementation(op, name, device)
                    break
    if QUESTIONS[op].gradients:
        yield Differentiable(op, "differentiable")
