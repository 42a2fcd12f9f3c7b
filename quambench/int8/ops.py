"""What the INT8 runtime does between two sites: quantize, normalise, multiply, rotate; and sites side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from quambench_kernels.hadamard_quantize import hadamard_quantize
from quambench_kernels.int8_linear import int8_linear
from quambench_kernels.rms_norm_quantize import add_rms_norm_quantize, rms_norm_quantize
from torch import Tensor, nn

from quambench.grids.grid import q_max
from quambench.grids.hadamard import base_signs, rotate
from quambench.int8.held import Grids, Held, Part
from quambench.int8.site_grid import SiteGrid, SymmetricGrid
from quambench.int8.weights import QuantizedTensor, Weight
from quambench.models.backbone import Tap, no_tap

Disturb = Callable[[Tensor], Tensor]
"""What is done to a float tensor before it is rounded to the grid: nothing, but in noise measurements."""


def undisturbed(x: Tensor) -> Tensor:
    """The runtime as it is."""
    return x


class Span(Part):
    """Sites side by side on the last axis of one tensor: name, grid and width of each.

    widths  of the sites
    scale   () where one scale serves all, else the table (C) that a kernel reads; None where some site has no scale
    """

    scale: Tensor | None

    def __init__(self, parts: Sequence[tuple[str, SiteGrid, int]]) -> None:
        super().__init__()
        self.sites = [site for site, _, _ in parts]
        self.widths = [width for _, _, width in parts]
        self._held = [Held(grid, kept=False) for _, grid, _ in parts]
        self._grids = nn.ModuleList(self._held)  # what moves them
        self.register_buffer("scale", self._scale(), persistent=False)

    @property
    def grids(self) -> list[SiteGrid]:
        """The grids of the sites, in their order."""
        return [held.value for held in self._held]

    def _scale(self) -> Tensor | None:
        scales = [grid.scale for grid in self.grids if isinstance(grid, SymmetricGrid)]
        if len(scales) < len(self.grids):
            return None
        if len(scales) == 1:
            return scales[0]
        return torch.cat([scale.expand(n) for scale, n in zip(scales, self.widths, strict=True)])

    def quantize(self, x: Tensor) -> Tensor:
        """Float (..., C) -> integers, or themselves where a site stays float."""
        parts = zip(self.grids, x.split(self.widths, dim=-1), strict=True)
        return _joined([grid.quantize(part) for grid, part in parts])

    def dequantize(self, q: Tensor) -> Tensor:
        """What was kept (..., C) -> float32."""
        parts = zip(self.grids, q.split(self.widths, dim=-1), strict=True)
        return _joined([grid.dequantize(part) for grid, part in parts])

    def show(self, q: Tensor, tap: Tap) -> None:
        """What is kept, to whoever watches the sites."""
        if tap is not no_tap:
            for site, grid, part in zip(self.sites, self.grids, q.split(self.widths, dim=-1), strict=True):
                tap(site, grid.dequantize(part))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


class QuantizedLinear(Part):
    """A weight, INT8 with scale () or (out, 1) or as floats; bias float32 or None; its input's grid, with one scale ().

    A product of integers where input and weight are integers, else one of float32.
    """

    bias: Tensor | None
    scale: Tensor | None  # (out): what one step of input times one of each row stands for
    floats: Tensor | None  # (out, in): of a weight that no INT8 product takes

    def __init__(self, weight: Held[Weight], bias: Tensor | None, grid: SiteGrid) -> None:
        super().__init__()
        self._weight, self._grid = weight, Held(grid, kept=False)
        scale = floats = None
        if not isinstance(weight.value, QuantizedTensor):
            floats = weight.value.dequantize()
        elif isinstance(grid, SymmetricGrid):
            scale = (grid.scale * weight.value.scale.flatten()).expand(weight.value.q.shape[0]).contiguous()
        for name, tensor in (("bias", bias), ("scale", scale), ("floats", floats)):
            self.register_buffer(name, tensor, persistent=False)

    @property
    def weight(self) -> Weight:
        return self._weight.value

    @property
    def grid(self) -> SiteGrid:
        """The grid of its input."""
        return self._grid.value

    def forward(self, x_q: Tensor) -> Tensor:
        """x_q (..., in) -> (..., out) float32."""
        if self.scale is not None:
            return int8_linear(x_q, self.weight.q, self.scale, self.bias)
        if self.floats is not None:
            return F.linear(self.grid.dequantize(x_q), self.floats, self.bias)
        assert isinstance(self.weight, QuantizedTensor)
        y = self.grid.product(x_q, self.weight)
        return y if self.bias is None else y + self.bias


class Runtime(Part):
    """A model's sites, and what the runtime does between them; of one block, or of what follows the last.

    Each verb takes what one site keeps to what the next keeps: by the INT8 kernel where all sites are symmetric
    grids, all weights integers and nothing is disturbed (`by_kernels`), else in float PyTorch between the grids,
    which serves any.
    """

    def __init__(self, grids: Mapping[str, SiteGrid], disturb: Disturb) -> None:
        super().__init__()
        self.grids, self.disturb = Grids(grids), disturb
        self.by_kernels = disturb is undisturbed and all(isinstance(g, SymmetricGrid) for g in grids.values())
        bits = {g.bits for g in grids.values() if isinstance(g, SymmetricGrid)}
        self.q_max = q_max(max(bits, default=8))

    def span(self, *sites: tuple[str, int]) -> Span:
        """Whole sites side by side, with their widths."""
        return Span([(site, self.grids[site], width) for site, width in sites])

    def enter(self, into: Span, x: Tensor, tap: Tap) -> Tensor:
        """Quantize: float -> what is kept; the tap sees what the integers stand for."""
        q = into.quantize(self.disturb(x))
        into.show(q, tap)
        return q

    def norm_into(self, into: Span, x: Tensor, residual: Tensor | None, eps: float, tap: Tap) -> tuple[Tensor, Tensor]:
        """RMSNorm of residual + x, its gain fused into what follows -> what is kept, and that sum."""
        scale = into.scale if self.by_kernels else None
        if residual is None:
            y, total = rms_norm_quantize(x, None, eps, scale, q_max=self.q_max), x
        else:
            y, total = add_rms_norm_quantize(x, residual, None, eps, scale, q_max=self.q_max)
        if scale is None:
            return self.enter(into, y, tap), total
        into.show(y, tap)
        return y, total

    def linear_into(self, into: Span, x_q: Tensor, linear: QuantizedLinear, tap: Tap) -> Tensor:
        """A projection -> what its output's sites keep."""
        if not self.by_kernels:
            return self.enter(into, linear(x_q), tap)
        q = int8_linear(x_q, linear.weight.q, linear.scale, linear.bias, into.scale, q_max=self.q_max)
        into.show(q, tap)
        return q

    def rotate_into(self, into: Span, y: Tensor, tap: Tap) -> Tensor:
        """The online Hadamard rotation -> what is kept."""
        if not self.by_kernels:
            return self.enter(into, rotate(y), tap)
        scale = into.scale
        assert scale is not None
        q = hadamard_quantize(y, scale, base_signs(y.shape[-1], y.device), q_max=self.q_max)
        into.show(q, tap)
        return q


def scale_of(grid: SiteGrid) -> Tensor:
    assert isinstance(grid, SymmetricGrid)
    return grid.scale
