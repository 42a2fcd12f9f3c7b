"""Measurements that no baseline holds, made in this process on a reduced number of sequences."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from quambench.bench.interleave import Ratio, interleaved
from quambench.bench.kernels import PREFILL, SHAPES, conv_by_table, conv_by_walking
from quambench.calibration.channels import arrange, channel_statistics, groups_of
from quambench.calibration.collect import Task, calibrate
from quambench.calibration.refine import RefinementSpec
from quambench.calibration.scales import Calibration
from quambench.calibration.sensitivity import Scale, by_layer, grids_of
from quambench.case import Case, Protocol
from quambench.data.corpus import load_corpus
from quambench.data.windows import spread_windows
from quambench.grids.precision import Precision
from quambench.int8.fuse import prepare
from quambench.int8.model import quantize_model
from quambench.models.backbone import LanguageModel, Tap
from quambench.models.checkpoint import Checkpoint, load_checkpoint
from quambench.models.sites import sites_of
from quambench.observers import Batch
from quambench.observers.percentile import upper_quantile

SEQUENCES = 64  # of the calibration part, and as many of the test part
LENGTH = Protocol().calib_length  # tokens of each
ALPHA = 0.9995  # Quamba's
GROUPS, GROUP, TOKENS = 6, 4, 64  # sensitivity: groups of test windows, windows of each, tokens of each
FEW, MORE = 4, 12  # sequences of the two runs that a calibration's seconds follow from
REPEATS = 3
TIMED = ("running_max", "percentile", "percentile/channel", "mse[low=0.8,steps=20]", "dynamic_percentile")
LOOKED_UP = "mamba2-8b"  # a shape with heads for every number of groups
TIMED_IN_GROUPS = {n: f"running_max/{n}x{n}/quamba2" for n in (2, 4, 8, 16)}  # of Mamba2 alone

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Seen:
    """Magnitudes per site and sequence, float64 (S,): the largest |x|, and at case sites the ALPHA-quantile of |x|."""

    largest: Mapping[str, Tensor]
    quantile: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class LayerCosts:
    """KL to float, nats/token: (GROUPS, n_layers) and (GROUPS,), each group of windows for itself."""

    alone: Tensor  # this layer quantized, all others float
    without: Tensor  # this layer float, all others quantized
    every: Tensor  # all quantized
    sites: Mapping[str, float]  # one site alone, on the first group


class Fresh:
    """The fresh measurements of one model; each is made when it is first asked for."""

    def __init__(self, model: str, progress: Progress = lambda what, done, total: None) -> None:
        """Remember the model, a bundled name or a folder."""
        self.given, self._progress = model, progress

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return load_checkpoint(self.given)

    @cached_property
    def prepared(self) -> LanguageModel:
        return prepare(self.checkpoint.model)

    def _report(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self._progress(f"{self.checkpoint.name}: {what}", done, total)

    def sequences(self, part: str) -> Tensor:
        """Return (SEQUENCES, LENGTH) int64 of the part "calibration" or "test"."""
        return spread_windows(load_corpus(None).part(part), self.checkpoint.tokenizer, LENGTH, SEQUENCES).inputs

    @cached_property
    def _calibrated(self) -> tuple[Calibration, Seen]:
        """The calibration by "percentile", and what passed meanwhile."""
        seen, tap = _watching(self.prepared)
        case = self._case("percentile")
        made = self._calibrate(case, self.sequences("calibration"), self._report("calibration data"), tap)
        return made, _joined(seen)

    @property
    def seen(self) -> Seen:
        """The magnitudes on the calibration part."""
        return self._calibrated[1]

    @cached_property
    def seen_at_runtime(self) -> Seen:
        """The magnitudes on as many sequences of the test part, in float: where activations go without any grid."""
        seen, tap = _watching(self.prepared)
        pieces = self.sequences("test").split(16)
        for i, rows in enumerate(pieces):
            with torch.no_grad():
                self.prepared(rows, tap=tap)
            self._report("test data")(i + 1, len(pieces))
        return _joined(seen)

    @cached_property
    def layer_costs(self) -> LayerCosts:
        config, grids = self.prepared.config, grids_of(self.prepared, self._calibrated[0])
        tokens = self.sequences("test")[:: SEQUENCES // (GROUPS * GROUP)][: GROUPS * GROUP, :TOKENS]
        report, sites = self._report("sensitivity"), list(sites_of(config))
        alone: list[list[float]] = []
        without: list[list[float]] = []
        every: list[float] = []
        of_sites: dict[str, float] = {}
        for g, rows in enumerate(tokens.split(GROUP)):
            report(g, GROUPS + 1)
            scale = Scale(self.prepared, rows)
            found = by_layer(scale, grids)
            alone.append([one.kl for one, _ in found.values()])
            without.append([other.kl for _, other in found.values()])
            every.append(scale.cost(grids, sites).kl)
            of_sites = of_sites or {site: scale.cost(grids, {site}).kl for site in sites}
        report(GROUPS + 1, GROUPS + 1)
        return LayerCosts(_float64(alone), _float64(without), _float64(every), of_sites)

    @cached_property
    def times(self) -> dict[str, Tensor]:
        """Return case -> (REPEATS,) CPU seconds of its calibration on the protocol's number of sequences.

        They follow from two short runs of each, in turn: the difference is the cost of sequences, the rest is paid
        once. CPU seconds, since other work on the machine would be in the clock's.
        """
        cases = {spec: self._case(spec) for spec in (*TIMED, *self._timed_in_groups)}
        sequences, report = self.sequences("calibration"), self._report("calibration times")
        found: dict[str, list[float]] = {spec: [] for spec in cases}
        for case in cases.values():
            self._calibrate(case, sequences[:1])  # so that no run pays for importing what it uses
        for repeat in range(REPEATS):
            for i, (spec, case) in enumerate(cases.items()):
                report(repeat * len(cases) + i, REPEATS * len(cases))
                few, more = (_cpu_seconds(partial(self._calibrate, case, sequences[:n])) for n in (FEW, MORE))
                each = (more - few) / (MORE - FEW)
                found[spec].append(few + each * (Protocol().calib_windows - FEW))
        report(REPEATS * len(cases), REPEATS * len(cases))
        return {spec: _float64(seconds) for spec, seconds in found.items()}

    @property
    def _timed_in_groups(self) -> list[str]:
        """Return the cases that are timed: as many groups as the model has heads and channels for."""
        c = self.checkpoint.config
        most = min(c.n_heads // c.n_groups, c.head_dim) if c.architecture == "mamba2" else 0
        return [spec for n, spec in TIMED_IN_GROUPS.items() if n <= most]

    @cached_property
    def learning_seconds(self) -> float:
        """Return the CPU seconds of training scales, after calibration: one run of `learned` at its defaults."""
        start, sequences = self._calibrated[0], self.sequences("calibration")
        model = quantize_model(self.prepared, start, Precision())
        learned = RefinementSpec.parse("learned").build()
        report = self._report("training scales")
        return _cpu_seconds(lambda: learned.refine(self.prepared, model, start, sequences, report))

    @cached_property
    def look_up_costs(self) -> dict[str, Ratio]:
        """Return way and groups -> time of the INT8 convolution with these scales, over one scale for all.

        The width is LOOKED_UP's, not this model's. Ways are "table", and "4x4" and the like by walking the runs.
        """
        shape, found = SHAPES[LOOKED_UP], {}
        report = self._report("looking scales up")
        with torch.inference_mode():
            for i, side in enumerate(TIMED_IN_GROUPS):
                report(i, len(TIMED_IN_GROUPS) + 1)
                found[f"{side}x{side}"] = interleaved(*conv_by_walking(shape, PREFILL, (side, side)))
            found["table"] = interleaved(*conv_by_table(shape, PREFILL))
        report(len(found), len(found))
        return found

    def _case(self, spec: str) -> Case:
        return Case.parse(self.checkpoint.name, spec)

    def _calibrate(
        self,
        case: Case,
        sequences: Tensor,
        progress: Callable[[int, int], None] = lambda done, total: None,
        also: Tap = lambda site, x: x,
    ) -> Calibration:
        """Calibrate a case. Groups come first, where there are any: statistics, clusters, and the model in their
        order.
        """
        config, groups = self.checkpoint.config, {}
        if case.groups_by:
            groups = groups_of(config, case.groups_by, lambda: channel_statistics(self.prepared, sequences))
        prepared = arrange(self.checkpoint.model, groups, self.prepared)
        plan = case.policy.build().plan(config, case.observer, case.grouping)
        task = Task(plan, case.precision.act_bits, case.precision.symmetric, groups)
        return calibrate(prepared, sequences, {case: task}, self.checkpoint.digest, progress, also=also)[case]


Lists = tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]


def _watching(prepared: LanguageModel) -> tuple[Lists, Tap]:
    """Return lists to be filled, and the tap that fills them."""
    sites = sites_of(prepared.config)
    largest: dict[str, list[Tensor]] = {site: [] for site in sites}
    quantile: dict[str, list[Tensor]] = {site: [] for site in sites if sites[site].observer == "case"}

    def tap(site: str, x: Tensor) -> Tensor:
        for one in x.float().split(1):
            batch = Batch(one.flatten()[None])
            largest[site].append(batch.amax.double())
            if site in quantile:
                quantile[site].append(upper_quantile(batch, ALPHA))
        return x

    return (largest, quantile), tap


def _joined(lists: Lists) -> Seen:
    largest, quantile = ({site: torch.stack(values) for site, values in found.items()} for found in lists)
    return Seen(largest, quantile)


def _float64(values: Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
