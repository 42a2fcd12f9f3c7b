"""The mark `cases` of a suite: what it says, and the cases that come of it for the models of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from quambench.case import FULL, QUICK, Case, Protocol, may_come_from_outside
from quambench.core.errors import BadParameter, UnknownName
from quambench.grids.precision import Precision
from quambench.models.checkpoint import bundled_names
from quambench.models.config import ModelConfig
from quambench.models.sites import ARCHITECTURES
from quambench.observers import ObserverSpec
from quambench.session.session import Session

LANGUAGES = ("prose", "recall")
EXAMPLE = '@pytest.mark.cases("running_max", "percentile[alpha=0.9995]")'


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command line says about cases: whose, and in place of what the suites say."""

    models: tuple[str, ...] = ()  # names of loaded ones; none: the bundled ones
    observers: tuple[str, ...] = ()
    calibrations: tuple[str, ...] = ()
    groupings: tuple[str, ...] = ()
    precision: str = ""
    tasks: tuple[str, ...] = ()
    task_limit: int = 0
    full: bool = False

    @property
    def replaces(self) -> bool:
        """Whether other cases run than the suites' own."""
        return bool(self.observers or self.calibrations or self.groupings or self.precision or self.tasks)


@dataclass(frozen=True, slots=True, kw_only=True)
class CasesMark:
    """cases(*specs, language='prose', quick=False, architecture='')

    specs         ids of cases, without the model
    language      what the models speak
    quick         half as much is measured
    architecture  where given, of its models alone
    """

    specs: tuple[str, ...]
    language: str = "prose"
    quick: bool = False
    architecture: str = ""

    @classmethod
    def parse(cls, args: Sequence[Any], settings: Mapping[str, Any]) -> Self:
        """Read the arguments of a mark. raises UnknownName, BadParameter"""
        known = [f.name for f in fields(cls) if f.name != "specs"]
        for name in settings:
            if name not in known:
                raise UnknownName("setting of the mark cases", name, known)
        mark = cls(specs=tuple(args), **settings)
        mark._check()
        return mark

    def _check(self) -> None:
        if not self.specs:
            raise BadParameter(f"the mark cases must name a case: write {EXAMPLE}")
        for spec in self.specs:
            if not isinstance(spec, str):
                raise BadParameter(f"the mark cases names each case by a string of its own, {EXAMPLE} (got {spec!r})")
        if self.language not in LANGUAGES:
            raise UnknownName("language", str(self.language), LANGUAGES)
        if self.architecture and self.architecture not in ARCHITECTURES:
            raise UnknownName("architecture", str(self.architecture), ARCHITECTURES)
        if not isinstance(self.quick, bool):
            raise BadParameter(f"the mark cases: quick must be True or False (got {self.quick!r})")
        named: dict[Case, str] = {}
        for spec in self.specs:
            case = Case.parse("", spec)
            if case in named:
                raise BadParameter(f"the mark cases names one case twice, {named[case]!r} and {spec!r}: write it once")
            named[case] = spec

    def cases(self, asked: Asked, session: Session) -> list[Case]:
        """One case per model and spec, or what the command line asks for in their place.

        raises NoCase where the models and the options that were asked for leave none; BadParameter where the
        bundled models do: such a mark judges nothing, ever
        """
        protocol = FULL if asked.full else QUICK if self.quick else Protocol()
        models = self._models(asked, session)
        cases = []
        for spec in self.specs:
            case = Case.parse("", spec, protocol)
            cases += [replace(case, model=name) for name in _of_depth(case, models, spec, asked, session)]
        if not cases:
            raise NoCase(f"no case: {', '.join(asked.models)} is of another depth than the mark's precisions")
        cases = _replaced(cases, asked, tasks=self.language == "prose")
        if not cases:
            raise NoCase("no case: --qb-calibration stands in for none of the mark's")
        return list(dict.fromkeys(cases))

    def _models(self, asked: Asked, session: Session) -> list[str]:
        if asked.models:
            spoken = {name: "recall" if c.recall else "prose" for name, c in session.checkpoints.items()}
            names = [name for name in asked.models if spoken[name] == self.language]
        else:
            names = list(bundled_names(self.language))
        if self.architecture:
            names = [name for name in names if _config(name, session).architecture == self.architecture]
        if names:
            return names
        wanted = f"{self.architecture or 'a model'} of {self.language}"
        if asked.models:
            raise NoCase(f"no case: the mark is for {wanted}, and --qb-model names {', '.join(asked.models)}")
        raise BadParameter(f"the mark cases is for {wanted}, and no bundled model is one: it judges nothing")


def _config(name: str, session: Session) -> ModelConfig:
    """Of a model, which is loaded for it: asked only where a mark leaves models out."""
    return (session.checkpoints.get(name) or session.load(name)).config


class NoCase(Exception):
    """A mark has no case in this run, rightly; the message says why."""


def _of_depth(case: Case, models: Sequence[str], spec: str, asked: Asked, session: Session) -> Sequence[str]:
    """Models that a case is for: a suite's own mix of precisions is of one depth, and others have no such case."""
    deep = len(case.precision.layers)
    if not deep:
        return models
    depths = {name: _config(name, session).n_layers for name in models}
    found = [name for name, depth in depths.items() if depth == deep]
    if not found and not asked.models:
        there = ", ".join(f"{name} has {depth}" for name, depth in depths.items())
        raise BadParameter(f"{spec!r} is for {deep} layers, and no bundled model of the mark has as many ({there})")
    return found


def _replaced(cases: list[Case], asked: Asked, tasks: bool) -> list[Case]:
    if asked.observers:
        observers = [ObserverSpec.parse(spec) for spec in asked.observers]
        cases = [replace(case, observer=o) for case in cases for o in observers]
    if asked.calibrations:
        fit = [case for case in cases if may_come_from_outside(case)]
        cases = [case.calibrated_by(name) for case in fit for name in asked.calibrations]
    if asked.groupings:
        cases = [replace(case, grouping=g) for case in cases for g in asked.groupings]
    if asked.precision:
        cases = [replace(case, precision=Precision.parse(asked.precision)) for case in cases]
    if asked.tasks and tasks:
        cases = [replace(case, tasks=asked.tasks, task_limit=asked.task_limit) for case in cases]
    return cases
