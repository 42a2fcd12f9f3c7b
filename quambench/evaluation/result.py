"""What one case came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from quambench.calibration.scales import Calibration
from quambench.case import Case, protocol_hash
from quambench.int8.weights import Weight
from quambench.metrics import Measurement


@dataclass(frozen=True)
class Result:
    """What one case came to."""

    case: Case
    settings: Mapping[str, object]  # the case's, and the digests of model and data
    metrics: Mapping[str, Measurement]
    evidence: Mapping[str, Tensor]
    calibration: Calibration
    weights: Mapping[str, Weight]
    seconds: float  # evaluation alone

    @property
    def protocol(self) -> str:
        return protocol_hash(dict(self.settings))
