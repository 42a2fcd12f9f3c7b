"""Weights of 4 bits in groups: symmetric, ties to even, one step per output channel and group of inputs.

Quamba2's W4A16, and the first level of its W4A8. Along the inputs, groups of 128; the last of a row may
be shorter. 16 levels, integers in [-8, 7], and a step of 2 amax / 15: amax lies 7.5 steps from zero, so
+amax is clipped by the half step that -amax is rounded by. All of it in float64: from float32 a quotient
could be rounded onto a tie, and GPTQ without feedback would not be rounding to nearest.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import pad

from quambench.core.errors import BadParameter
from quambench.grids.grid import MIN_SCALE, dequantize, quantize
from quambench.int8.weights import QuantizedTensor, digest_of, quantize_rows

BITS = 4
GROUP = 128  # inputs that share a step, in Quamba2


@dataclass(frozen=True, slots=True)
class GroupedWeight:
    """q (out, in) int8 in [-8, 7]; steps (out, n_groups) float32 > 0, weight units per integer."""

    q: Tensor
    steps: Tensor
    group: int

    def dequantize(self) -> Tensor:
        """(out, in) float32."""
        return dequantize(self.q, spread(self.steps, self.group, self.q.shape[1]))

    @property
    def scale(self) -> Tensor:
        return self.steps

    @property
    def n_bytes(self) -> int:
        """Two integers a byte, and the float32 steps as kept here (Quamba keeps them in float16)."""
        return (self.q.numel() + 1) // 2 + self.steps.nbytes

    @property
    def digest(self) -> str:
        return digest_of(self.q)


def round_to_nearest(weight: Tensor, group: int = GROUP, threshold: Tensor | None = None) -> GroupedWeight:
    """weight (out, in) float -> each value to the nearest level of its group.

    threshold  (out, n_groups) float, what stands in place of a group's amax: beyond it values are clipped

    raises BadParameter for shapes that do not fit, or a threshold that is no width
    """
    check_groups(weight, group)
    amax = group_amax(weight, group)
    if threshold is not None:
        if threshold.shape != amax.shape:
            raise BadParameter(
                f"a threshold must be one per row and group, {tuple(amax.shape)} (got {tuple(threshold.shape)})"
            )
        if not (threshold.isfinite() & (threshold >= 0)).all():
            raise BadParameter("a threshold must be finite and at least 0 (got one that is not)")
        amax = threshold
    steps = group_step(amax)
    return GroupedWeight(quantize(weight.double(), spread(steps.double(), group, weight.shape[1]), BITS), steps, group)


def to_int8(grouped: GroupedWeight) -> QuantizedTensor:
    """The second level of W4A8, as in QQQ: on the INT8 grid, with one scale per output channel (out, 1).

    The runtime's INT8 product takes it as any other weight. It adds half a step of the INT8 grid at
    most, 4/127 of the row's largest 4-bit step.
    """
    return quantize_rows(grouped.dequantize())


def group_amax(weight: Tensor, group: int) -> Tensor:
    """(out, in) -> (out, n_groups): each group's largest magnitude, in the weight's dtype."""
    missing = -weight.shape[1] % group
    grouped: Tensor = pad(weight.abs(), (0, missing)).unflatten(1, (-1, group))
    return grouped.amax(dim=2)


def group_step(amax: Tensor) -> Tensor:
    """2 amax / 15 of any shape, float32, at least MIN_SCALE."""
    steps: int = 2**BITS - 1
    return (2 * amax.double() / steps).float().clamp(min=MIN_SCALE)


def spread(steps: Tensor, group: int, columns: int) -> Tensor:
    """(out, n_groups) -> (out, columns): to every input the step of its group."""
    return steps.repeat_interleave(group, dim=1)[:, :columns]


def check_groups(weight: Tensor, group: int) -> None:
    """Whether a weight can be cut into groups.

    raises BadParameter
    """
    if weight.ndim != 2 or 0 in weight.shape:
        raise BadParameter(f"a weight to be grouped must be (out, in), neither of them 0 (got {tuple(weight.shape)})")
    if group < 1:
        raise BadParameter(f"a group must have at least 1 input (got {group})")
