"""Which cases rest on a probe's unit: a case is red where its own unit answers otherwise, and not where another's does.

Each is a predicate of a model's architecture and a case; a probe is made with the one that is true of its unit.
"""

from __future__ import annotations

from collections.abc import Callable

from quambench.case import Case
from quambench.policy.base import PER_TENSOR

Rests = Callable[[str, Case], bool]
"""(architecture, case) -> whether the case depends on the unit"""

LAST = "running_max"  # weights, and sites without the case's own observer, keep the largest value


def every_case(architecture: str, case: Case) -> bool:
    """Everybody goes through it."""
    return True


def all_of(*rests: Rests) -> Rests:
    """Where each of these is true."""
    return lambda architecture, case: all(one(architecture, case) for one in rests)


def of_kind(kind: str) -> Rests:
    """Models of one architecture. kind: one of models.CONFIGS, "mamba2-bare" for one"""
    return lambda architecture, case: kind.partition("-")[0] == architecture


def observed_by(spec: str) -> Rests:
    """Cases in which an observer of this name watches something: a site, or a weight."""
    name = spec.partition("[")[0]
    return lambda _, case: name in (case.observer.name, case.weights.observer.name, LAST)


def calibrated_here(architecture: str, case: Case) -> bool:
    """Cases whose scales are made here, and not by code from outside."""
    return not case.calibration


def under_policy(spec: str) -> Rests:
    """Cases whose policy has this name."""
    return lambda _, case: case.policy.name == spec.partition("[")[0]


def refined_by(spec: str) -> Rests:
    """Cases whose scales are trained in this way."""
    return lambda _, case: case.refinement is not None and case.refinement.name == spec.partition("[")[0]


def refined(architecture: str, case: Case) -> bool:
    """Cases whose scales are trained."""
    return case.refinement is not None


def measuring(architecture: str, case: Case) -> bool:
    """Cases whose policy measures sites first."""
    return case.policy.found().measures


def finer(architecture: str, case: Case) -> bool:
    """Cases in which some site may have more than one scale."""
    return case.grouping != PER_TENSOR or measuring(architecture, case)


def in_groups(architecture: str, case: Case) -> bool:
    """Cases in which heads and channels are put into groups."""
    return case.groups_by is not None


def in_groups_that_look(architecture: str, case: Case) -> bool:
    """Of those the ones whose grouping looks at statistics of channels."""
    return case.groups_by is not None and bool(case.groups_by.build().looks)


def clustered_by(method: str) -> Rests:
    """Cases whose groups are made by a method, or, where nothing is looked at, by a grouping of this name."""
    return lambda _, case: _made_by(case, "method", method)


def divided_by(rule: str) -> Rests:
    """Cases whose number of groups a rule chooses."""
    return lambda _, case: _made_by(case, "rule", rule)


def _made_by(case: Case, field: str, value: str) -> bool:
    if case.groups_by is None:
        return False
    made = case.groups_by.build()
    return getattr(made, field, None) == value if made.looks else case.groups_by.name == value


def asymmetric(architecture: str, case: Case) -> bool:
    """Cases whose grids have a zero point."""
    return not case.precision.symmetric


def of_four_bits(architecture: str, case: Case) -> bool:
    """Cases whose weights are of 4 bits in groups."""
    return case.weights.granularity == "group"


def by_gptq(architecture: str, case: Case) -> bool:
    """Of those the ones that are rounded with error feedback."""
    return of_four_bits(architecture, case) and case.weights.gptq


def of_weights(granularity: str) -> Rests:
    """Cases whose weights have scales of this granularity."""
    return lambda _, case: case.weights.granularity == granularity
