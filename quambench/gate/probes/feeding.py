"""Probes of what is fed to whom: that calibration, and what goes before it, sees the sequences that it was given.

All of them, once, in order and unshifted, whatever number of them goes through the model at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from quambench.calibration import channels as arranging
from quambench.calibration import collect as calibrating
from quambench.calibration import hessians as moments
from quambench.calibration import sensitivity
from quambench.case import Case, Protocol
from quambench.data.tokenizer import Tokenizer
from quambench.gate.probes.base import Answer, Probe, Streams
from quambench.gate.probes.models import ARCHITECTURES, model_of
from quambench.gate.probes.resting import all_of, by_gptq, calibrated_here, in_groups_that_look, measuring, of_kind
from quambench.gate.probes.units import CONFIGS, shape_of
from quambench.grids.precision import Precision
from quambench.models.backbone import Tap, no_tap
from quambench.models.checkpoint import Checkpoint
from quambench.models.config import ModelConfig
from quambench.models.sites import local_name, sites_of
from quambench.observers import ObserverSpec
from quambench.observers.base import Observer
from quambench.observers.batch import Batch
from quambench.policy.base import PER_TENSOR
from quambench.policy.quamba import Quamba
from quambench.run import runner

SEQUENCES, TOKENS = 37, 5  # two forward batches, and a part of a third
FADING = f"{__name__}:Fading"
CASES = {"running_max": "running_max", "fading": FADING, "gptq": "running_max/w4a8/gptq"}


def probes() -> Iterator[Probe]:
    for kind in ARCHITECTURES:
        yield Probe(
            f"calibration/{kind}/fed",
            lambda _, k=kind: _calibrated(CONFIGS[k]),  # type: ignore[misc]
            rests=all_of(calibrated_here, of_kind(kind)),
        )
        yield Probe(
            f"sensitivity/{kind}",
            lambda _, k=kind: _weighed(CONFIGS[k]),  # type: ignore[misc]
            rests=all_of(measuring, of_kind(kind)),
        )
        yield Probe(
            f"calibration/{kind}/run",
            lambda s, k=kind: _run(s, k),  # type: ignore[misc]
            rests=all_of(calibrated_here, of_kind(kind)),
        )
    yield Probe("cluster/statistics/fed", lambda _: _looked_at(CONFIGS["mamba2"]), rests=in_groups_that_look)
    yield Probe("gptq/fed", lambda _: _multiplied(CONFIGS["mamba"]), rests=by_gptq)


@dataclass
class Fading(Observer):
    """Half of what was, half of what comes: it tells the order, and is no observer that only some cases have."""

    order_matters: ClassVar[bool] = True

    def observe(self, batch: Batch) -> Tensor:
        newest = batch.amax.double()
        return newest if self.amax is None else (self.amax + newest) / 2


class Echo:
    """Stands in for a model: what passes its sites are the tokens that went in, and it keeps what it was fed."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.fed: list[Tensor] = []

    def __call__(self, tokens: Tensor, state: Any = None, tap: Tap = no_tap) -> tuple[Tensor, Any]:
        self.fed.append(tokens)
        x, heard = tokens.double(), torch.zeros(tokens.shape, dtype=torch.float64)
        for i, site in enumerate(sites_of(self.config)):
            of_state = site.endswith("ssm_state")
            _, *widths = shape_of(local_name(site), self.config)
            one = x[:, -1] if of_state else x
            wide = one.view(*one.shape, *[1] * (len(widths) - (not of_state))).expand(
                *one.shape, *(widths if of_state else widths[1:])
            )
            found = tap(site, wide + torch.arange(wide.shape[-1]) / 7 + i)
            heard = heard + found.flatten(1).mean(1, keepdim=True)
        return torch.stack([heard / 64, x / 8, torch.zeros_like(x)], dim=-1), state

    @property
    def tokens(self) -> Tensor:
        """All that came, one after another."""
        return torch.cat([tokens.flatten() for tokens in self.fed]).int()


def _sequences(count: int, length: int) -> Tensor:
    """No two alike, no one its own mirror image."""
    return (torch.arange(count)[:, None] * 13 + torch.arange(length) ** 2 * 3) % 101


def _calibrated(config: ModelConfig) -> Answer:
    """An average that depends on the order of sequences, and maxima."""
    echo, plan = Echo(config), Quamba().plan(config, ObserverSpec(FADING), PER_TENSOR)
    tasks = {"": calibrating.Task(plan, 8)}
    made = calibrating.calibrate(echo, _sequences(SEQUENCES, TOKENS), tasks, "probe")[""]  # type: ignore[arg-type]
    return {"tokens": echo.tokens, **made.scales, "digest": [made.data_digest]}


def _looked_at(config: ModelConfig) -> Answer:
    echo = Echo(config)
    found = arranging.channel_statistics(echo, _sequences(SEQUENCES, TOKENS))  # type: ignore[arg-type]
    whole = {f"layer {i}, {n}": getattr(s, n).float() for i, s in found.items() for n in ("mean_abs", "amax", "energy")}
    return {"tokens": echo.tokens, **whole}


def _multiplied(config: ModelConfig) -> Answer:
    echo = Echo(config)
    found = moments.gather_hessians(echo, _sequences(SEQUENCES, TOKENS))  # type: ignore[arg-type]
    return {"tokens": echo.tokens, **{name: hessian.float() for name, hessian in found.items()}}


def _weighed(config: ModelConfig) -> Answer:
    """What each site costs: by the last sequences, cut, in pieces; calibrated on all."""
    echo, given = Echo(config), _sequences(sensitivity.WINDOWS + 5, sensitivity.LENGTH + 6)
    found = sensitivity.measure(echo, given, ObserverSpec("running_max"), Precision(act_bits=4), "probe")  # type: ignore[arg-type]
    costs = {f"{site}, {name}": torch.tensor(cost) for site, by in found.items() for name, cost in by.items()}
    pieces = torch.tensor([len(tokens.flatten()) for tokens in echo.fed[:8]])
    return {"tokens": echo.tokens[:3000], "calls": pieces, **costs}


def checkpoint_of(streams: Streams, kind: str) -> Checkpoint:
    """A small model as if it had been loaded."""
    model = model_of(streams, kind)
    words = [f"word{i}" for i in range(model.config.vocab_size - 1)]
    return Checkpoint("probe", model.config, model, Tokenizer.of_words(words), f"probe {kind}")


def _run(streams: Streams, kind: str) -> Answer:
    """A whole run's scales and second moments, of sequences that it was told."""
    checkpoint, corpus, protocol = checkpoint_of(streams, kind), SimpleNamespace(digest="probe"), Protocol()
    known = runner.Known(sequences={(checkpoint.digest, corpus.digest, protocol): streams["sequences"]})
    cases = {name: Case.parse(checkpoint.name, text, protocol) for name, text in CASES.items()}
    run = runner.ModelRun(checkpoint, corpus, cases.values(), known=known)  # type: ignore[arg-type]
    answer: dict[str, Tensor | list[str]] = {}
    for name, case in cases.items():
        made = run.calibration(case)
        answer |= {f"{name}, {site}": scale for site, scale in made.scales.items()}
        answer[f"{name}, data"] = [made.data_digest]
    return answer | {f"{n}, diagonal": h.diagonal().float() for n, h in run.hessians(cases["gptq"]).items()}
