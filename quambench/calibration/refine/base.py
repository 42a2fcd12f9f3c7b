"""What a refinement is: from a Calibration to a better one, never to a worse one on its validation part."""

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
    """What training came to. Losses are means over their part, in the refinement's own unit."""

    calibration: Calibration
    losses: Mapping[str, float]  # "train.start", "train.end", "validation.start", "validation.end"
    best_step: int  # 0: nothing was better than the start
    steps: int
    seconds: float
    best_steps: Mapping[str, int] = field(default_factory=dict)  # where parts of the model train alone: of each

    @property
    def gap(self) -> float:
        """Share of the start's loss that training removed, on its own part minus on the validation part.

        0.1: ten points of the gain were of its own data alone. The validation part chose the best step, so
        even its own share is a little too good.
        """
        if self.best_step == 0:
            return 0.0
        own, other = (self.losses[f"{p}.end"] / self.losses[f"{p}.start"] for p in PARTS)
        return other - own

    @property
    def summary(self) -> str:
        """One line for people."""
        own, other = (" -> ".join(f"{self.losses[f'{p}.{at}']:.4g}" for at in ("start", "end")) for p in PARTS)
        return (
            f"{self.steps} steps in {self.seconds:.1f} s, best after {self.best_step}; loss {own} on the training"
            f" part, {other} on the validation part, gap {100 * self.gap:+.1f} points"
        )


class Refinement(ABC):
    """A subclass is a frozen dataclass; its fields are what a spec may set."""

    @abstractmethod
    def refine(
        self,
        prepared: LanguageModel,
        quantized: QuantizedModel,
        start: Calibration,
        sequences: Tensor,
        progress: Progress = lambda done, total: None,
    ) -> Refined:
        """start's scales, trained on part of `sequences` (S, L) and judged on the rest.

        prepared   the float model that the scales belong to: what is to be imitated
        quantized  the INT8 model at the start: its weights are what training sees
        """


REFINEMENTS: Registry[type[Refinement]] = Registry("refinement", "quambench/calibration/refine/")


@dataclass(frozen=True, slots=True)
class RefinementSpec(Spec):
    """A refinement by name and the parameters given, e.g. learned[steps=40]."""

    kind: ClassVar[str] = "a refinement"

    def found(self) -> type[Refinement]:
        return REFINEMENTS[self.name]
