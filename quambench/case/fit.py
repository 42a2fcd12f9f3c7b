"""Whether the parts of a case go together."""

from __future__ import annotations

from dataclasses import replace

from quambench.case.case import OUTSIDE, QUAMBA, Case
from quambench.core.errors import BadParameter
from quambench.grids.precision import FLOAT_BITS
from quambench.int8.recipe import WeightRecipe
from quambench.interchange.quamba import BITS
from quambench.policy.base import PER_TENSOR


def check_fit(case: Case) -> None:
    """Whether the parts of a case go together; what takes a plan or data to tell is told later.

    raises BadParameter
    """
    if case.calibration:
        _check_fit_of_outside(case)
    of_four = any(bits.weights == 4 for bits in case.precision.everywhere)
    if case.weights.granularity == "group" and not of_four:
        raise BadParameter(f"{case.weights.id} makes weights of 4 bits: write w4a{case.precision.act_bits} beside it")
    if case.groups_by and case.policy.found().measures:
        raise BadParameter(f"{case.policy.name} measures sites without groups: leave {case.grouping} out")
    if idle := _idle(case):
        raise BadParameter(f"{idle} changes nothing in {case.precision.id}: leave it out")
    if case.precision.symmetric:
        return
    if case.refinement:
        raise BadParameter(f"{case.refinement.name} trains symmetric grids alone: leave asymmetric out")
    if case.policy.found().measures:
        raise BadParameter(f"{case.policy.name} measures symmetric grids alone: leave asymmetric out")


def may_come_from_outside(case: Case) -> bool:
    """Whether Quamba's act_scales can be a case's: of one kind of grid, with a place for groups and nothing finer."""
    return not _unlike_act_scales(replace(case, policy=QUAMBA))


def _check_fit_of_outside(case: Case) -> None:
    name = f"{OUTSIDE}{case.calibration}"
    if case.policy != QUAMBA:
        raise BadParameter(f"{name} chooses every scale itself: leave the policy {case.policy} out")
    if unlike := _unlike_act_scales(case):
        raise BadParameter(f"{name} {unlike}")


def _unlike_act_scales(case: Case) -> str:
    if case.grouping != PER_TENSOR and case.groups_by is None:
        return f"has one scale per tensor, or groups such as 4x4 (got {case.grouping})"
    if case.precision.grid_bits != BITS or not case.precision.symmetric:
        return f"makes scales of symmetric grids of {BITS} bits (got {case.precision.id})"
    return ""


def _idle(case: Case) -> str:
    """A part that is about what the precision leaves float; "" where there is none."""
    if case.weights != WeightRecipe() and all(bits.weights == FLOAT_BITS for bits in case.precision.everywhere):
        return case.weights.id
    if case.precision.grid_bits < FLOAT_BITS:
        return ""
    if case.policy.found().measures:
        return case.policy.name
    if case.refinement:
        return case.refinement.name
    return "" if case.precision.symmetric else "asymmetric"
