"""What a planted fault is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

BOTH = ("mamba", "mamba2")
ONE, OTHER = ("mamba",), ("mamba2",)
# The scan's input: the first percentile site of either architecture.
SCAN_INPUT = {"mamba": "x_proj:input", "mamba2": "x_conv_out"}


@dataclass(frozen=True, slots=True)
class Fault:
    """What is planted, and what the gate should say."""

    name: str
    plant: Callable[[], AbstractContextManager[Any]]
    unit: str  # probe of the unit at fault, "" where no unit alone is
    place: str  # first site or weight; {scan} stands for the scan's input
    architectures: tuple[str, ...] = BOTH
    case: str = ""  # what the case must be, as its id says after the model; "" for the self-test's usual one
    error: bool = False  # the right verdict is ERROR: data that no scale can be made of
    no_op: str = ""  # why it changes nothing


FAULTS: list[Fault] = []

Plant = Callable[[], AbstractContextManager[Any]]


def fault(name: str, unit: str = "", place: str = "", **more: Any) -> Callable[[Plant], Plant]:
    """Enter a fault."""

    def enter(plant: Plant) -> Plant:
        FAULTS.append(Fault(name, plant, unit, place, **more))
        return plant

    return enter
