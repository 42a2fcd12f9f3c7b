"""Calibrations of several plans at once: one forward pass feeds every observer of every plan.

The prepared model runs in float64 and each activation is rounded to float32 before an observer
sees it: two machines then disagree only where a float64 rounding error crosses a float32 rounding
boundary, so scales agree to 1 ulp everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from quambench.calibration.scales import Calibration
from quambench.core.errors import BadCorpus, BadParameter, NonFinite, SiteUnseen
from quambench.grids.granularity import GROUPS, UNQUANTIZED, groups_at, layout
from quambench.grids.grid import asymmetric_scale
from quambench.grouping import Groups
from quambench.models.backbone import LanguageModel, Tap, no_tap
from quambench.models.config import ModelConfig
from quambench.observers import Batch, Observer, ObserverSpec
from quambench.policy import Assignment, Plan, check_plan

FORWARD_BATCH = 16  # sequences per forward; observers still see one at a time
_MANY = 1 << 20  # a number of values for which observers are asked how long a tail they need, to find the longest

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
Progress = Callable[[int, int], None]
"""(sequences done, sequences in all) -> None"""


@dataclass(frozen=True, slots=True)
class Task:
    """The request of a case: which observer stands at which site, on which grid."""

    plan: Plan
    act_bits: int
    symmetric: bool = True
    groups: Mapping[int, Groups] = field(default_factory=dict)  # by layer, of a model in their order


@dataclass(frozen=True, slots=True)
class _Watched:
    """A site under an observer, a granularity and a grid. Equal ones are observed once."""

    site: str
    observer: ObserverSpec
    granularity: str
    bits: int
    symmetric: bool
    groups: Groups | None = None


class _Watcher:
    """The observers of one _Watched: one for each part that its layout makes of the tensor."""

    def __init__(self, of: _Watched, config: ModelConfig) -> None:
        self.of = of
        self._layout = layout(of.granularity, of.site, config, of.groups)
        self._observers: list[Observer] = []  # the first exists before anything is observed
        self._failed: Exception | None = None

    def update(self, parts: Sequence[Batch], sequence: int) -> None:
        """Show the parts of one sequence to the observers. An error is kept until this scale is asked for."""
        if self._failed:
            return
        try:
            self._build(len(parts))
            for observer, part in zip(self._observers, parts, strict=True):
                observer.update(part)
        except NonFinite as error:
            self._failed = NonFinite(f"{self.of.site}, calibration sequence {sequence}: {error}")
        except Exception as error:  # an observer from outside may fail in any way
            self._failed = error

    def tail_length(self, n: int) -> int:
        """Return how many of n values' largest its observers will ask for."""
        try:
            self._build(1)
            return self._observers[0].tail_length(n)
        except Exception as error:  # an observer from outside may fail in any way
            self._failed = error
            return 0

    def _build(self, n: int) -> None:
        self._observers += [self.of.observer.build(self.of.bits) for _ in range(n - len(self._observers))]

    @cached_property
    def scale(self) -> Tensor:
        """Return (*scale_shape); where asymmetric, with a leading 2: step and zero point.

        raises SiteUnseen, BadParameter or NonFinite of this site; or what an observer's update raised
        """
        if self._failed:
            raise self._failed
        try:
            found = [self._scale(observer) for observer in self._observers]
        except SiteUnseen:
            found = []
        except (BadParameter, NonFinite) as error:  # an observer from outside may say anything
            raise type(error)(f"{self.of.site}: {error}") from None
        if not found:
            raise SiteUnseen(f"no calibration data passed through {self.of.site}")
        return self._layout.join(found)

    def lay_out(self, x: Tensor) -> list[Batch]:
        """Lay a tensor out. An asymmetric grid needs two scales: how far values reach on either side."""
        parts = self._layout.lay_out(x)
        if self.of.symmetric:
            return [Batch(part) for part in parts]
        return [Batch(torch.stack([part.clamp(min=0), (-part).clamp(min=0)], dim=1)) for part in parts]

    def _scale(self, observer: Observer) -> Tensor:
        if self.of.symmetric:
            return observer.scale()
        high, low = observer.grid_end()
        return torch.stack(asymmetric_scale(-low, high, self.of.bits))


@torch.no_grad()
def calibrate(
    prepared: LanguageModel,
    sequences: Tensor,
    tasks: Mapping[K, Task],
    model_digest: str,
    progress: Progress = lambda done, total: None,
    failed: dict[K, Exception] | None = None,
    also: Tap = no_tap,
) -> dict[K, Calibration]:
    """Run `sequences` once through `prepared`, and turn each task's observers into scales.

    sequences  (S, L) int64; each sequence is one batch to an observer, in this order
    failed     where given, a task whose scales cannot be made is entered here and the others go on
    also       another tap that watches the same pass
    raises NonFinite naming site and sequence; SiteUnseen naming the site; BadCorpus for no sequence;
           BadParameter where a plan asks what a site's consumer cannot work with
    """
    if sequences.numel() == 0:
        raise BadCorpus("calibration needs at least one sequence of at least one token")
    fit = each(tasks, lambda key: _checked(prepared.config, tasks[key]), failed)
    if not fit:
        return {}
    watchers = _watchers(fit, prepared.config)
    by_site: dict[str, list[list[_Watcher]]] = {}
    for alike in _grouped(watchers.values()):
        by_site.setdefault(alike[0].of.site, []).append(alike)

    first = 0  # index of the forward batch's first sequence

    def watch(site: str, x: Tensor) -> Tensor:
        for alike in by_site.get(site, ()):
            for offset, one in enumerate(x.float().split(1)):
                parts = alike[0].lay_out(one)
                for watcher in alike:
                    watcher.update(parts, first + offset)
        return also(site, x)

    looks = by_site or also is not no_tap  # where every site stays float, nothing does
    for first in range(0, len(sequences) if looks else 0, FORWARD_BATCH):
        prepared(sequences[first : first + FORWARD_BATCH], tap=watch)
        progress(min(first + FORWARD_BATCH, len(sequences)), len(sequences))

    def finished(key: K) -> Calibration:
        task = fit[key]
        return Calibration(
            scales={site: _scale(watchers, site, a, task) for site, a in task.plan.items()},
            granularities={s: a.granularity for s, a in task.plan.items()},
            observers={s: str(a.observer.complete) for s, a in task.plan.items()},
            act_bits=task.act_bits,
            model_digest=model_digest,
            data_digest=digest_of(sequences),
            symmetric=task.symmetric,
            groups=task.groups,
        )

    return each(fit, finished, failed)


def digest_of(sequences: Tensor) -> str:
    """Return a hash of calibration sequences, (S, L) int64: a Calibration's data_digest."""
    return hashlib.sha256(str(tuple(sequences.shape)).encode() + sequences.numpy().tobytes()).hexdigest()


def each(keys: Iterable[K], make: Callable[[K], T], failed: dict[K, Exception] | None) -> dict[K, T]:
    """Return key -> make(key) for all keys. An error of one goes to `failed`, and the others go on; without
    `failed` it is raised.
    """
    made: dict[K, T] = {}
    for key in keys:
        try:
            made[key] = make(key)
        except Exception as error:
            if failed is None:
                raise
            failed[key] = error
    return made


def _watched(site: str, assignment: Assignment, task: Task) -> _Watched:
    observer, granularity = assignment.observer.complete, assignment.granularity
    groups = _groups(site, assignment, task)
    if groups and _joins(observer, task):
        granularity, groups = ("channel_state" if site.endswith("ssm_state") else "channel"), None
    return _Watched(site, observer, granularity, task.act_bits, task.symmetric, groups)


def _groups(site: str, assignment: Assignment, task: Task) -> Groups | None:
    return groups_at(site, task.groups) if assignment.granularity == GROUPS else None


def _joins(observer: ObserverSpec, task: Task) -> bool:
    """Whether a group's scale is the largest of its channels': then one pass per channel serves any groups."""
    return task.symmetric and bool(vars(observer.found()).get("joins_by_max"))


def _scale(watchers: Mapping[_Watched, _Watcher], site: str, assignment: Assignment, task: Task) -> Tensor:
    """Return a site's scale as the runtime reads it; an empty tensor for a site that stays float."""
    if assignment.granularity == UNQUANTIZED:
        return torch.zeros(0)
    scale, groups = watchers[_watched(site, assignment, task)].scale, _groups(site, assignment, task)
    if groups is None or not _joins(assignment.observer, task):
        return scale
    return groups.largest(scale.flatten(0, 1) if site.endswith("ssm_state") else scale)


def _checked(config: ModelConfig, task: Task) -> Task:
    """Return the task. raises BadParameter where its plan asks what a site's consumer or an observer cannot work
    with
    """
    check_plan(config, task.plan)
    for assignment in task.plan.values():
        if not task.symmetric and not assignment.observer.found().knows_sides:
            raise BadParameter(
                f"{assignment.observer.name} looks for the end of a symmetric grid; on an asymmetric one"
                " take running_max or percentile"
            )
    return task


def _watchers(tasks: Mapping[K, Task], config: ModelConfig) -> dict[_Watched, _Watcher]:
    """Return a watcher for every distinct thing to observe."""
    of = (
        _watched(site, assignment, task)
        for task in tasks.values()
        for site, assignment in task.plan.items()
        if assignment.granularity != UNQUANTIZED
    )
    return {watched: _Watcher(watched, config) for watched in dict.fromkeys(of)}


def _grouped(watchers: Iterable[_Watcher]) -> list[list[_Watcher]]:
    """Return watchers that see a site in one layout together; the longest tail comes first, so that the others
    share it.
    """
    found: dict[tuple[str, str, bool, Groups | None], list[_Watcher]] = {}
    for watcher in watchers:
        of = watcher.of
        found.setdefault((of.site, of.granularity, of.symmetric, of.groups), []).append(watcher)
    for alike in found.values():
        alike.sort(key=lambda w: -w.tail_length(_MANY))
    return list(found.values())
