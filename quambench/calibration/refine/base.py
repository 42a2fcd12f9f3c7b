"""The contract of a refinement: it returns a better Calibration, never one that is worse on its validation part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from quambench.calibration.scales import Calibration
from quambench.core.registry import Registry
from quambench.core.spec import Spec
from quambench.int8.model import QuantizedModel
from quambench.models.backbone import LanguageModel

Progress = Callable[[int, int], None]
"""(steps done, steps in all) -> None"""

PARTS = ("train", "validation")


@dataclass(frozen=True, slots=True)
class Refined:
    """The result of training. Losses are means over their part, in the refinement's own unit."""

    calibration: Calibration
    losses: Mapping[str, float]  # "train.start", "train.end", "validation.start", "validation.end"
    best_step: int  # 0: nothing was better than the start
    steps: int
    seconds: float
    best_steps: Mapping[str, int] = field(default_factory=dict)  # of each part, where parts train alone

    @property
    def gap(self) -> float:
        """Return the share of the start's loss that training removed on its own part, minus that on the validation
        part.

        0.1 means that ten points of the gain hold for its own data alone. The validation part chose the best step, so
        even its share is a little too good.
        """
        if self.best_step == 0:
            return 0.0
        own, other = (self.losses[f"{p}.end"] / self.losses[f"{p}.start"] for p in PARTS)
        return other - own

    @property
    def summary(self) -> str:
        """Return a line for people."""
        own, other = (" -> ".join(f"{self.losses[f'{p}.{at}']:.4g}" for at in ("start", "end")) for p in PARTS)
        return (
            f"{self.steps} steps in {self.seconds:.1f} s, best after {self.best_step}; loss {own} on the training"
            f" part, {other} on the validation part, gap {100 * self.gap:+.1f} points"
        )


class Refinement(ABC):
    """Base of all refinements. A subclass is a frozen dataclass; its fields are what a spec may set."""

    @abstractmethod
    def refine(
        self,
        prepared: LanguageModel,
        quantized: QuantizedModel,
        start: Calibration,
        sequences: Tensor,
        progress: Progress = lambda done, total: None,
    ) -> Refined:
        """Train start's scales on part of `sequences` (S, L) int64, and judge them on the rest.

        prepared   the float model that the scales belong to: training imitates it
        quantized  the INT8 model at the start, whose weights training sees
        """


REFINEMENTS: Registry[type[Refinement]] = Registry("refinement", "quambench/calibration/refine/")


@dataclass(frozen=True, slots=True)
class RefinementSpec(Spec):
    """A refinement by name and the parameters given, e.g. learned[steps=40]."""

    kind: ClassVar[str] = "a refinement"

    def found(self) -> type[Refinement]:
        return REFINEMENTS[self.name]
