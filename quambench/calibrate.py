"""Model + sequences + plans -> Calibrations. One forward pass feeds every observer of every plan.

The prepared model runs in float64 and each activation is rounded to float32 before an observer
sees it: two machines then disagree only where a float64 rounding error crosses a float32 rounding
boundary, so scales agree to 1 ulp everywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from quambench.core.errors import BadArtefact, BadCorpus, BadParameter, NonFinite, SiteUnseen
from quambench.core.files import locked, write
from quambench.core.pointers import check_fetched
from quambench.core.reading import Unreadable, is_file, mappings, read_bytes, read_json, shown, text
from quambench.grids.granularity import GRANULARITIES, GROUPS, UNQUANTIZED, groups_at, layout, scale_shape
from quambench.grids.grid import asymmetric_scale, check_steps, check_zero_points
from quambench.grids.precision import FLOAT_BITS
from quambench.grouping import Groups
from quambench.models.backbone import LanguageModel, Tap, no_tap
from quambench.models.config import ModelConfig
from quambench.models.sites import architectures_with, local_name, sites_of
from quambench.observers import Batch, Observer, ObserverSpec
from quambench.policy import Assignment, Plan, check_plan

SCHEMA = 1
_ABOUT, _SCALES = "calibration.json", "scales.safetensors"
FORWARD_BATCH = 16  # sequences per forward; observers still see one at a time
_GROUPS = ("head_index", "channel_index", "head_sizes", "dim_sizes")  # fields of Groups, as they are saved
_MANY = 1 << 20  # values of which observers ask for tails of different length, to tell which asks for most

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
Progress = Callable[[int, int], None]
"""(sequences done, sequences in all) -> None"""


@dataclass(frozen=True)
class Calibration:
    """The scales of one model under one plan, and what they were made from."""

    scales: Mapping[str, Tensor]  # site -> (*scale_shape) float32, in forward order
    granularities: Mapping[str, str]  # site -> granularity name
    observers: Mapping[str, str]  # site -> observer, parameters written out
    act_bits: int
    model_digest: str
    data_digest: str  # of the sequences
    symmetric: bool = True  # else a scale is (2, *scale_shape): step and shifted zero point
    groups: Mapping[int, Groups] = field(default_factory=dict)  # by layer; the model's channels stand in their order

    @property
    def digest(self) -> str:
        """Hash of scales, granularities and bits: what the runtime would read."""
        h = hashlib.sha256(f"{self.act_bits}{'' if self.symmetric else ' asymmetric'}".encode())
        for site, scale in self.scales.items():
            h.update(f"{site} {self.granularities[site]} {tuple(scale.shape)}".encode())
            h.update(scale.contiguous().numpy().tobytes())
        for layer, groups in self.groups.items():
            h.update(f"{layer} {groups.digest}".encode())
        return h.hexdigest()

    def save(self, folder: Path) -> None:
        """Write scales.safetensors and calibration.json: killed at any moment, the old pair is loaded or the new one.

        raises NotWritten
        """
        arrays = dict(self.scales)
        for layer, groups in self.groups.items():
            arrays |= {f"groups.{layer}.{name}": getattr(groups, name).contiguous() for name in _GROUPS}
        with locked(folder):
            with suppress(BadArtefact):  # for as long as one of the two files is the old one, the JSON describes both
                write(folder / _ABOUT, _dump(Calibration.load(folder)._about | {"replaced_by": self._about}))
            write(folder / _SCALES, save(arrays))
            write(folder / _ABOUT, _dump(self._about))

    @property
    def _about(self) -> dict[str, Any]:
        """Return what calibration.json is to say."""
        sites = {s: {"observer": self.observers[s], "granularity": self.granularities[s]} for s in self.scales}
        about = {
            "schema": SCHEMA,
            "act_bits": self.act_bits,
            "symmetric": self.symmetric,
            "model_digest": self.model_digest,
            "data_digest": self.data_digest,
            "scales_digest": self.digest,
            "sites": sites,
        }
        return about | ({"grouped_layers": list(self.groups)} if self.groups else {})

    @classmethod
    def load(cls, folder: Path) -> Calibration:
        """raises BadArtefact when a file is missing, corrupt, of another schema, not the other's twin, or when it holds
        what no calibration can make (`check_calibration`)"""
        while True:
            before = _text_of(folder)
            try:
                return cls._loaded(folder)
            except BadArtefact:
                if _text_of(folder) == before:
                    raise
                # somebody saved another calibration between the reading of the one and of the other

    @classmethod
    def _loaded(cls, folder: Path) -> Calibration:
        """raises BadArtefact"""
        about, stored = _read(folder)
        following = about.get("replaced_by")
        if following is not None:
            with suppress(BadArtefact):  # killed on the way: the scales are the new ones, or still not
                _check_about(folder, following)
                return cls._of(folder, following, stored)
        return cls._of(folder, about, stored)

    @classmethod
    def _of(cls, folder: Path, about: Mapping[str, Any], stored: Mapping[str, Tensor]) -> Calibration:
        """What calibration.json says, and the arrays that it speaks of. raises BadArtefact"""
        sites = about["sites"]
        try:
            loaded = cls(
                scales={s: stored[s] for s in sites},
                granularities={s: entry["granularity"] for s, entry in sites.items()},
                observers={s: entry["observer"] for s, entry in sites.items()},
                act_bits=about["act_bits"],
                model_digest=about["model_digest"],
                data_digest=about["data_digest"],
                symmetric=about.get("symmetric", True),  # files from before there was a choice
                groups={
                    layer: Groups(*(stored[f"groups.{layer}.{name}"] for name in _GROUPS))
                    for layer in about.get("grouped_layers", ())
                },
            )
            same = loaded.digest == about["scales_digest"]
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, BadParameter) as error:
            raise BadArtefact(f"{shown(folder)} holds a corrupt calibration: {shown(repr(error))}") from None
        if not same:
            raise BadArtefact(f"{shown(folder)}: {_SCALES} is not the file that {_ABOUT} describes")
        try:
            check_calibration(loaded)
        except BadArtefact as error:
            raise BadArtefact(f"{shown(folder)} holds a corrupt calibration: {error}") from None
        return loaded


def _read(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    """calibration.json, of this schema, and scales.safetensors. raises BadArtefact"""
    for name in (_ABOUT, _SCALES):
        if not is_file(folder / name):
            raise BadArtefact(f"{shown(folder)} holds no calibration: {name} is missing")
        check_fetched(folder / name, BadArtefact)
    try:
        about = read_json(folder / _ABOUT)
        _check_about(folder, about)
        return about, load(read_bytes(folder / _SCALES))
    except (Unreadable, SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise BadArtefact(f"{shown(folder)} holds a corrupt calibration: {shown(error)}") from None


def _check_about(folder: Path, about: Any) -> None:
    if not mappings(about, "sites"):
        raise BadArtefact(f"{shown(folder)} holds a corrupt calibration: {_ABOUT} must be an object with sites")
    if about.get("schema") != SCHEMA:
        got = shown(about.get("schema"))
        raise BadArtefact(f"{shown(folder)}: calibration of schema {got}, this version reads {SCHEMA}")


def _text_of(folder: Path) -> bytes:
    """calibration.json, as far as it can be read."""
    with suppress(Unreadable):
        return read_bytes(folder / _ABOUT)
    return b""


def check_calibration(calibration: Calibration, config: ModelConfig | None = None) -> None:
    """Whether a Calibration that came from somewhere is one that calibration could have made.

    Every reader asks this: of a saved folder, of another program's file, of code from outside.
    config  the model's, where it is known: its sites, each with a scale of the shape that its granularity has there
    raises BadArtefact naming the site
    """
    c = calibration
    if type(c.act_bits) is not int or not (2 <= c.act_bits <= 8 or c.act_bits == FLOAT_BITS):
        raise BadArtefact(f"act_bits must be 2 to 8, or {FLOAT_BITS} where all stays float (got {shown(c.act_bits)})")
    if type(c.symmetric) is not bool:
        raise BadArtefact(f"symmetric must be true or false (got {shown(c.symmetric)})")
    if not (text(c.model_digest) and text(c.data_digest)):
        raise BadArtefact("the digests of model and data must be strings")
    if config is not None and set(c.scales) != set(sites_of(config)):
        apart = sorted(set(c.scales) ^ set(sites_of(config)))[0]
        is_there = "of another model" if apart in c.scales else "missing"
        raise BadArtefact(f"the sites must be those of the model: {shown(apart)} is {is_there}")
    known = {"mamba", "mamba2"}
    for site in c.scales:
        known &= architectures_with(site)
        if not known:
            raise BadArtefact(f"{shown(site)} is no site of a model that has the sites before it")
    for layer in c.groups:
        if type(layer) is not int or layer < 0:
            raise BadArtefact(f"a layer in groups must be a number (got {shown(repr(layer))})")
    for site in c.scales:
        _check_site(c, site, config)


def _check_site(c: Calibration, site: str, config: ModelConfig | None) -> None:
    granularity, scale = c.granularities[site], c.scales[site]
    if not text(c.observers[site]):
        raise BadArtefact(f"{site}: the observer must be a string (got {shown(c.observers[site])})")
    if granularity not in (*GRANULARITIES, UNQUANTIZED, GROUPS):
        raise BadArtefact(f"{site}: no granularity is called {shown(granularity)}")
    if scale.dtype != torch.float32:
        raise BadArtefact(f"{site}: scales must be float32 (got {str(scale.dtype).removeprefix('torch.')})")
    sides = () if c.symmetric or granularity == UNQUANTIZED else (2,)
    if tuple(scale.shape[: len(sides)]) != sides or not _fits(c, site, tuple(scale.shape[len(sides) :]), config):
        raise BadArtefact(f"{site}: {tuple(scale.shape)} is no shape of scales per {granularity} there")
    if granularity == UNQUANTIZED:
        return
    if c.act_bits == FLOAT_BITS:
        raise BadArtefact(f"{site} has a scale, and act_bits say that all stays float")
    check_steps(scale[0] if sides else scale, site)
    if sides:
        check_zero_points(scale[1], c.act_bits, site)


# Axes of a scale by granularity, where no model says how long they are; a state has more.
_AXES = {"tensor": (0,), "split": (1,), "ssd_group": (1,), "head": (1,), "channel": (1, 2), "channel_state": (2, 3)}


def _fits(c: Calibration, site: str, shape: tuple[int, ...], config: ModelConfig | None) -> bool:
    """Whether a scale of this shape can stand at a site."""
    granularity, groups = c.granularities[site], groups_at(site, c.groups)
    if granularity == UNQUANTIZED:
        return shape == (0,)
    if config is not None:
        one = sites_of(config)[site]
        if granularity not in (*one.allowed, *([GROUPS] if one.grouped else [])):
            return False
        try:
            return shape == scale_shape(granularity, site, config, groups)
        except (BadParameter, RuntimeError, IndexError):  # groups of another model's heads or channels
            return False
    if granularity == GROUPS:
        state = local_name(site) == "ssm_state"
        return groups is not None and shape[:3] == groups.shape and len(shape) == (4 if state else 3) and 0 not in shape
    return len(shape) in _AXES[granularity] and 0 not in shape


def _dump(about: Mapping[str, Any]) -> str:
    return json.dumps(about, indent=1) + "\n"


@dataclass(frozen=True, slots=True)
class Task:
    """What one case asks of calibration."""

    plan: Plan
    act_bits: int
    symmetric: bool = True
    groups: Mapping[int, Groups] = field(default_factory=dict)  # by layer, of a model in their order


@dataclass(frozen=True, slots=True)
class _Watched:
    """One site under one observer, granularity and grid: equal ones are observed once."""

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
        self._observers: list[Observer] = []
        self._failed: Exception | None = None

    def update(self, parts: Sequence[Batch], sequence: int) -> None:
        """What goes wrong is kept for whoever asks for the scale: other watchers have nothing to do with it."""
        if self._failed:
            return
        try:
            self._observers = self._observers or [self.of.observer.build(self.of.bits) for _ in parts]
            for observer, part in zip(self._observers, parts, strict=True):
                observer.update(part)
        except NonFinite as error:
            self._failed = NonFinite(f"{self.of.site}, calibration sequence {sequence}: {error}")
        except Exception as error:  # an observer from outside may fail in any way
            self._failed = error

    @cached_property
    def scale(self) -> Tensor:
        """(*scale_shape); with a leading 2, step and zero point, where asymmetric.

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
        """What an asymmetric grid asks is how far values reach on either side: two scales for each one."""
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
    """Hash of calibration sequences, (S, L) int64: a Calibration's data_digest."""
    return hashlib.sha256(str(tuple(sequences.shape)).encode() + sequences.numpy().tobytes()).hexdigest()


def each(keys: Iterable[K], make: Callable[[K], T], failed: dict[K, Exception] | None) -> dict[K, T]:
    """key -> make(key). What one raises is no other's concern: it goes to `failed`; without that, it is raised."""
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
    """As the runtime reads it; of a site that stays float, nothing."""
    if assignment.granularity == UNQUANTIZED:
        return torch.zeros(0)
    scale, groups = watchers[_watched(site, assignment, task)].scale, _groups(site, assignment, task)
    if groups is None or not _joins(assignment.observer, task):
        return scale
    return groups.largest(scale.flatten(0, 1) if site.endswith("ssm_state") else scale)


def _checked(config: ModelConfig, task: Task) -> Task:
    """The task. raises BadParameter where its plan asks what a site's consumer or an observer cannot work with"""
    check_plan(config, task.plan)
    for assignment in task.plan.values():
        if not task.symmetric and not assignment.observer.found().knows_sides:
            raise BadParameter(
                f"{assignment.observer.name} looks for the end of a symmetric grid; on an asymmetric one"
                " take running_max or percentile"
            )
    return task


def _watchers(tasks: Mapping[K, Task], config: ModelConfig) -> dict[_Watched, _Watcher]:
    """Every distinct thing to observe."""
    of = (
        _watched(site, assignment, task)
        for task in tasks.values()
        for site, assignment in task.plan.items()
        if assignment.granularity != UNQUANTIZED
    )
    return {watched: _Watcher(watched, config) for watched in dict.fromkeys(of)}


def _grouped(watchers: Iterable[_Watcher]) -> list[list[_Watcher]]:
    """Those that see a site laid out alike, together; the longest tail first, so that the others share it."""
    found: dict[tuple[str, str, bool, Groups | None], list[_Watcher]] = {}
    for watcher in watchers:
        of = watcher.of
        found.setdefault((of.site, of.granularity, of.symmetric, of.groups), []).append(watcher)
    for alike in found.values():
        alike.sort(key=lambda w: -w.of.observer.build(w.of.bits).tail_length(_MANY))
    return list(found.values())
