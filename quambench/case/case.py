"""A case: everything that can change a number, and nothing else."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from quambench.calibration.refine import REFINEMENTS, RefinementSpec
from quambench.case.protocol import SIZES, Protocol
from quambench.core.errors import BadParameter, QuambenchError, UnknownName
from quambench.grids.precision import Precision, is_width
from quambench.grouping import GroupingSpec
from quambench.int8.recipe import WeightRecipe
from quambench.int8.weights import LARGEST
from quambench.interchange.outside import find_calibration
from quambench.observers import ObserverSpec
from quambench.policy import POLICIES, PolicySpec
from quambench.policy.base import check_grouping, clusterings, groupings, is_clustering

QUAMBA = PolicySpec("quamba")
_TASKS = "tasks="
OUTSIDE = "calibration="  # what the first part of an id starts with where scales come from outside


def asks_tasks(case_id: str) -> bool:
    """Whether an id is of a case with tasks."""
    return f"/{_TASKS}" in case_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """model x observer x grouping, under a policy and a precision.

    Defaults are history: add fields, never change a default.
    """

    model: str
    observer: ObserverSpec
    grouping: str = "1x1"
    policy: PolicySpec = QUAMBA
    precision: Precision = field(default_factory=Precision)
    weights: WeightRecipe = field(default_factory=WeightRecipe)
    refinement: RefinementSpec | None = None  # what calibration's scales are trained by afterwards
    tasks: tuple[str, ...] = ()  # of lm-evaluation-harness, asked beside all else
    task_limit: int = 0  # documents of each; 0 takes all
    calibration: str = ""  # from outside, `module:function`, in place of observer and policy
    protocol: Protocol = field(default_factory=Protocol)

    @property
    def groups_by(self) -> GroupingSpec | None:
        """How heads and channels are put into groups, where they are."""
        grouped = self.policy.found().groups or is_clustering(self.grouping)
        return GroupingSpec.parse(self.grouping) if grouped else None

    @property
    def id(self) -> str:
        """For people, and for -k: mamba2-tiny/percentile[alpha=0.9995,sigma=0.01]/1x1."""
        parts = [self.model, self._scales_by, self.grouping]
        if self.policy != QUAMBA:
            parts.append(str(self.policy))
        if self.precision != Precision():
            parts.append(self.precision.id)
        if self.weights != WeightRecipe():
            parts.append(self.weights.id)
        if self.refinement:
            parts.append(str(self.refinement))
        parts += [suffix for suffix, protocol in SIZES.items() if protocol == self.protocol]
        if self.tasks:
            parts.append(self._asked)
        return "/".join(parts)

    @property
    def _scales_by(self) -> str:
        return f"{OUTSIDE}{self.calibration}" if self.calibration else str(self.observer)

    @property
    def _asked(self) -> str:
        return f"{_TASKS}{'+'.join(self.tasks)}" + (f":{self.task_limit}" if self.task_limit else "")

    def calibrated_by(self, name: str) -> Case:
        """This with its scales from outside. raises UnknownName, BadParameter"""
        find_calibration(name)
        return replace(self, calibration=name, observer=LARGEST, policy=QUAMBA)

    @classmethod
    def parse(cls, model: str, text: str, protocol: Protocol | None = None) -> Case:
        """What an id says after the model: "mse/1x1/w8a4", "percentile/channel", "running_max/gptq/w4a8".

        The observer comes first, or "calibration=module:function"; what follows may be left out, in any order.

        raises UnknownName, BadParameter
        """
        case = cls(model=model, observer=LARGEST, protocol=protocol or Protocol())
        first, *rest = re.split(r"/(?![^\[\]]*\])", text)  # not at one in brackets: a path
        try:
            return case._with(first, rest)
        except (BadParameter, UnknownName) as error:
            raise (error.within(f"case {text}") if rest else error) from None

    def _with(self, first: str, rest: Sequence[str]) -> Case:
        """This with the parts of an id. raises UnknownName, BadParameter"""
        if first.startswith(OUTSIDE):
            case = self.calibrated_by(first.removeprefix(OUTSIDE))
        else:
            case = replace(self, observer=_observer(first))
        given: dict[str, Any] = {}
        for i, part in enumerate(rest):
            try:
                found = _part(part)
            except (UnknownName, BadParameter) as error:
                if not part or isinstance(error, UnknownName):
                    _refuse_cut_path(rest[i:])
                raise
            if twice := next((name for name in found if name in given), ""):
                raise BadParameter(f"a case has one {twice} (got another, {part})")
            given |= found
        return replace(case, **given)

    def settings(self) -> dict[str, object]:
        """Every field by name, defaults of observer and policy written out.

        What was added after results had been stored stands here only where it is not at its default, so
        that those results still say what they measured.
        """
        observer = self._scales_by if self.calibration else str(self.observer.complete)
        flat: dict[str, object] = {"model": self.model, "observer": observer}
        grouping = str(GroupingSpec.parse(self.grouping).complete) if is_clustering(self.grouping) else self.grouping
        flat |= {"grouping": grouping, "policy": str(self.policy.complete)}
        flat |= asdict(self.precision) | asdict(self.protocol)
        layers, embedding_bits = flat.pop("layers"), flat["embedding_bits"]
        if self.precision.symmetric:
            del flat["symmetric"]
        if embedding_bits is None:
            del flat["embedding_bits"]
        if layers:
            flat["layers"] = " ".join(map(str, self.precision.layers))
        if self.weights != WeightRecipe():
            flat["weights"] = replace(self.weights, observer=self.weights.observer.complete).id
        if self.refinement:
            flat["refinement"] = str(self.refinement.complete)
        if self.tasks:
            flat["tasks"] = self._asked
        return flat


def _observer(text: str) -> ObserverSpec:
    """The first part of an id. raises UnknownName, BadParameter"""
    try:
        return ObserverSpec.parse(text)
    except UnknownName:
        try:
            _part(text)
        except QuambenchError:
            pass
        else:
            raise BadParameter(f"a case starts with its observer: write percentile/{text} (got {text!r})") from None
        raise


def in_order(tasks: Iterable[str]) -> tuple[str, ...]:
    """Names as a case has them: each once, sorted, so that one set of tasks is one case."""
    return tuple(sorted(set(tasks)))


def _refuse_cut_path(parts: Sequence[str]) -> None:
    """raises BadParameter where the first parts are the path of a mix's file, cut at its slashes"""
    end = next((n for n, part in enumerate(parts, 1) if part.endswith(".json")), 0)
    if end > 1:
        path = "/".join(parts[:end]).removeprefix("precision=")
        raise BadParameter(f"the path of a mix stands in brackets, or its slashes part it: write mix[{path}]")


def _part(text: str) -> dict[str, Any]:
    """One part of an id, recognised by its form -> the field that it sets."""
    name = text.partition("[")[0]
    if not text:
        raise BadParameter("a part between slashes is empty: leave the slash out")
    if text != name and (name in SIZES or name == "gptq"):
        raise BadParameter(f"{name} takes no parameters: write {name} (got {text!r})")
    for spec in (PolicySpec, RefinementSpec):
        if spec.miswritten(text):
            spec.parse(text)  # which says how it is written
    if text in SIZES:
        return {"protocol": SIZES[text]}
    if name in POLICIES:
        return {"policy": PolicySpec.parse(text)}
    if name in REFINEMENTS:
        return {"refinement": RefinementSpec.parse(text)}
    if text == "gptq" or text.startswith("weights="):
        return {"weights": WeightRecipe.parse(text)}
    if (text[:1] == "w" and text[1:2].isdigit()) or name == "mix" or text.endswith(".json") or is_width(text):
        return {"precision": Precision.parse(text)}
    if text.startswith(_TASKS):
        names, _, limit = text.removeprefix(_TASKS).partition(":")
        if not names or not re.fullmatch(r"0{0,8}[1-9][0-9]{0,8}", limit or "1"):
            raise BadParameter(
                f"tasks are written {_TASKS}name+name, with :N for N documents of each, 1 or more (got {text!r})"
            )
        return {"tasks": in_order(names.split("+")), "task_limit": int(limit or 0)}
    if name in groupings() or is_clustering(text) or GroupingSpec.miswritten(text):
        check_grouping(text)
        return {"grouping": text}
    known = [*groupings(), "4x4", *clusterings(), *POLICIES, *REFINEMENTS, *SIZES, "gptq", "weights=channel", "w8a8"]
    raise UnknownName("part of a case", text, known)


def protocol_hash(settings: dict[str, object]) -> str:
    """For machines: 12 hex digits over a case's settings and its data; decides STALE."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
