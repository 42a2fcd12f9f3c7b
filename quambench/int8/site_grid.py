"""The fixed grid of one activation site, as the runtime uses it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from quambench_kernels.int8_linear import int8_linear
from torch import Tensor

from quambench.grids.granularity import UNQUANTIZED, groups_at, layout
from quambench.grids.grid import clipped, dequantize, dequantize_asymmetric, q_max, quantize, quantize_asymmetric
from quambench.grouping.groups import Groups
from quambench.int8.weights import QuantizedTensor
from quambench.models.backbone import Tap
from quambench.models.config import ModelConfig
from quambench.models.sites import sites_of


class SiteScales(Protocol):
    """What is read of a Calibration: per site its scale, granularity by name; by layer its groups, if any.

    On an asymmetric grid a scale is (2, *scale_shape): step and shifted zero point.
    """

    @property
    def scales(self) -> Mapping[str, Tensor]: ...
    @property
    def granularities(self) -> Mapping[str, str]: ...
    @property
    def groups(self) -> Mapping[int, Groups]: ...


class SiteGrid(Protocol):
    """Float to integers and back; the kinds are below."""

    def quantize(self, x: Tensor) -> Tensor:
        """Float -> what is kept, of x's shape."""

    def dequantize(self, q: Tensor) -> Tensor:
        """What is kept -> float32."""

    def product(self, x_q: Tensor, weight: QuantizedTensor) -> Tensor:
        """x_q (..., in) with one scale () times a weight (out, in) -> (..., out) float32."""

    def channels(self, first: int, n: int) -> SiteGrid:
        """The grid of n channels of the last axis, from the first on; of one: with one scale ()."""

    def double(self) -> SiteGrid:
        """The same grid, its scale float64."""

    def position(self, x: Tensor) -> Tensor:
        """Where float values fall between the grid's ends, -1 to 1; NaN without a grid."""

    def clipped(self, x: Tensor) -> Tensor:
        """bool: the grid's ends cut these values, i.e. their rounded quotient lies outside it."""


@dataclass(frozen=True, slots=True)
class SymmetricGrid:
    """q = clamp(round(x / scale)); scale float, broadcasts to the site's tensor."""

    scale: Tensor
    bits: int

    def quantize(self, x: Tensor) -> Tensor:
        return quantize(x, self.scale, self.bits)

    def dequantize(self, q: Tensor) -> Tensor:
        return dequantize(q, self.scale)

    def product(self, x_q: Tensor, weight: QuantizedTensor) -> Tensor:
        return int8_linear(x_q, weight.q) * (self.scale * weight.scale.flatten())

    def channels(self, first: int, n: int) -> Self:
        return replace(self, scale=_channels(self.scale, first, n))

    def double(self) -> Self:
        return replace(self, scale=self.scale.double())

    def position(self, x: Tensor) -> Tensor:
        return x / self.scale / q_max(self.bits)

    def clipped(self, x: Tensor) -> Tensor:
        return clipped(x, self.scale, self.bits)


@dataclass(frozen=True, slots=True)
class AsymmetricGrid:
    """q = clamp(round(x / scale) + zero); both broadcast to the site's tensor. For comparison only."""

    scale: Tensor
    zero: Tensor
    bits: int

    def quantize(self, x: Tensor) -> Tensor:
        return quantize_asymmetric(x, self.scale, self.zero, self.bits)

    def dequantize(self, q: Tensor) -> Tensor:
        return dequantize_asymmetric(q, self.scale, self.zero)

    def product(self, x_q: Tensor, weight: QuantizedTensor) -> Tensor:
        """sum (q - zero) w = sum q w - zero sum w: integers throughout, so exact."""
        shift = self.zero.to(torch.int32) * weight.q.sum(1, dtype=torch.int32)
        return (int8_linear(x_q, weight.q) - shift) * (self.scale * weight.scale.flatten())

    def channels(self, first: int, n: int) -> Self:
        return replace(self, scale=_channels(self.scale, first, n), zero=_channels(self.zero, first, n))

    def double(self) -> Self:
        return replace(self, scale=self.scale.double(), zero=self.zero.double())

    def position(self, x: Tensor) -> Tensor:
        top = q_max(self.bits)
        return 2 * (x / self.scale + self.zero + top + 1) / (2 * top + 1) - 1

    def clipped(self, x: Tensor) -> Tensor:
        return clipped(x, self.scale, self.bits, self.zero)


@dataclass(frozen=True, slots=True)
class Unquantized:
    """A site that stays float: what a policy pays for the worst, and what comparisons are made with."""

    def quantize(self, x: Tensor) -> Tensor:
        return x

    def dequantize(self, q: Tensor) -> Tensor:
        return q

    def product(self, x_q: Tensor, weight: QuantizedTensor) -> Tensor:
        return F.linear(x_q, weight.dequantize())

    def channels(self, first: int, n: int) -> Self:
        return self

    def double(self) -> Self:
        return self

    def position(self, x: Tensor) -> Tensor:
        return torch.full_like(x, torch.nan)

    def clipped(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x, dtype=torch.bool)


def site_grid(site: str, calibration: SiteScales, config: ModelConfig, bits: int, symmetric: bool) -> SiteGrid:
    """The grid that a calibration gives a site."""
    granularity, scale = calibration.granularities[site], calibration.scales[site]
    if granularity == UNQUANTIZED:
        return Unquantized()
    expand = layout(granularity, site, config, groups_at(site, calibration.groups)).expand
    if symmetric:
        return SymmetricGrid(expand(scale), bits)
    return AsymmetricGrid(expand(scale[0]), expand(scale[1]), bits)


def site_grids(calibration: SiteScales, config: ModelConfig, bits: int, symmetric: bool) -> dict[str, SiteGrid]:
    """Of every site, in forward order."""
    return {site: site_grid(site, calibration, config, bits, symmetric) for site in sites_of(config)}


def rounding_at(grids: Mapping[str, SiteGrid]) -> Tap:
    """A tap for the float model: what passes these sites goes on as their grids know it."""
    return lambda site, x: grids[site].dequantize(grids[site].quantize(x)) if site in grids else x


def _channels(scale: Tensor, first: int, n: int) -> Tensor:
    if scale.ndim == 0:
        return scale
    return scale[..., first] if n == 1 else scale[..., first : first + n]
