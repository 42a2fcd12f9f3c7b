"""Faults are planted where they are named: in what a module defines, for everybody; in what it imports, there alone."""

from __future__ import annotations

import pytest

from quambench.gate import findings, probes
from quambench.grids import grid
from quambench.int8 import site_grid, weights
from quambench.observers import kl
from quambench.selftest.faults import FAULTS
from quambench.selftest.faults.planting import planted, wrapped


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_can_be_planted(fault):
    """What it patches is there: a fault whose target has moved says so here, not after an hour."""
    with fault.plant():
        pass


def spoilt(bits: int) -> int:
    return 7


def test_what_a_module_defines_is_spoilt_for_all_that_import_it_and_right_again_afterwards():
    right = grid.q_max
    with planted(grid, "q_max", spoilt):
        assert [module.q_max for module in (grid, kl)] == [spoilt, spoilt]
        assert grid.symmetric_scale.__globals__["q_max"] is spoilt
    assert grid.q_max is kl.q_max is right


def test_what_a_module_only_imports_is_spoilt_there_alone():
    with planted(kl, "q_max", spoilt):
        assert kl.q_max is spoilt
        assert grid.q_max is not spoilt


def test_a_constant_is_spoilt_for_all_that_import_it():
    with planted(grid, "MIN_SCALE", 0.5):
        assert {m.MIN_SCALE for m in (grid, site_grid, weights) if hasattr(m, "MIN_SCALE")} == {0.5}
    assert grid.MIN_SCALE != 0.5


def test_a_constant_of_the_same_name_and_value_elsewhere_is_another_one():
    assert findings.MAX_SCALE_ULP is probes.MAX_SCALE_ULP
    with planted(findings, "MAX_SCALE_ULP", 500_000):
        assert (findings.MAX_SCALE_ULP, probes.MAX_SCALE_ULP) == (500_000, 1)


def test_a_method_is_spoilt_in_its_class():
    with wrapped(site_grid.SymmetricGrid, "quantize", lambda original, self, x: "spoilt"):
        assert site_grid.SymmetricGrid.quantize(None, None) == "spoilt"
    assert site_grid.SymmetricGrid.quantize is not None


def test_what_went_wrong_under_a_fault_takes_it_away_too():
    right = grid.q_max
    with pytest.raises(RuntimeError), planted(grid, "q_max", spoilt):
        raise RuntimeError
    assert grid.q_max is kl.q_max is right
