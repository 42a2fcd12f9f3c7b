"""The table of evidence: every array that is stored has a line, and every line an array."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from quambench.evaluation.fields import FIELDS, FROM_OUTSIDE, NUMBERS, Rule, field_of
from quambench.gate.probes import metrics as probes

BASELINES = Path(__file__).parents[2] / "baselines"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "I32": torch.int32, "I64": torch.int64, "U8": torch.uint8}


@pytest.fixture(scope="module")
def stored() -> dict[str, set[tuple[torch.dtype, int]]]:
    """Return of every array that the repository's baselines store: its dtypes and numbers of axes."""
    found: dict[str, set[tuple[torch.dtype, int]]] = {}
    for path in sorted(BASELINES.rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for entry in file.keys():  # noqa: SIM118 - a file that is open is no mapping
                name = entry.rpartition("//")[2].removeprefix("rest.")
                array = file.get_slice(entry)
                if not name.startswith("artefacts."):
                    found.setdefault(name, set()).add((DTYPES[array.get_dtype()], len(array.get_shape())))
    assert found, "no baseline stores anything: is this a clone?"
    return found


def test_every_stored_array_is_of_a_field_and_as_the_field_says(stored):
    for name, seen in stored.items():
        field = field_of(name)
        assert field is not FROM_OUTSIDE, f"{name} is stored; enter it in quambench/evaluation/fields.py"
        assert field.made_by, f"{name} is our own; its line in quambench/evaluation/fields.py must say what makes it"
        for dtype, axes in seen:
            assert dtype in field.dtypes, f"{name} is stored as {dtype}, which its field does not allow"
            assert axes == len(field.axes), f"{name} is stored with {axes} axes, its field has {field.axes}"


def test_every_field_of_ours_is_of_an_array(stored):
    names = {*stored, *probes.evidence(), *probes.task_evidence()}
    unused = {f.name for f in FIELDS if f.made_by} - {field_of(name).name for name in names}
    assert not unused, f"no array is of {unused}; drop the line, or move it above the pattern that hides it"


def test_the_function_that_measures_a_field_exists():
    for field in (f for f in FIELDS if f.made_by):
        module, _, function = f"quambench.{field.made_by}".rpartition(".")
        try:
            import_module(f"quambench.{field.made_by}")
        except ModuleNotFoundError:
            assert hasattr(import_module(module), function), f"{field.name}: nothing is {field.made_by}"


def test_an_array_from_outside_may_be_of_any_shape_and_is_noisy():
    assert field_of("mine.values") is FROM_OUTSIDE
    assert (FROM_OUTSIDE.axes, FROM_OUTSIDE.rule, FROM_OUTSIDE.dtypes) == (None, Rule.NOISY, NUMBERS)
    assert field_of("mine.nll_float").rule is Rule.REFERENCE  # its name says what it is
    assert field_of("mine.tokens").rule is Rule.EXACT


def test_the_first_pattern_that_fits_counts():
    assert field_of("sites.signal").rule is Rule.REFERENCE
    assert field_of("sites.clipped").name == "sites.*"
    assert field_of("recall.copy.right_float").rule is Rule.EXACT
    assert field_of("recall.copy.right").rule is Rule.NOISY
