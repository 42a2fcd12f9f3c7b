"""Histograms of signed values, one per scale, whose bins follow float32's own digits.

A value's bin is read off its bits: the exponent and the first k digits of the mantissa, so that an octave
[2^e, 2^(e+1)) has 2^k bins of equal width, and bins halve in width from one octave to the next below. The OCTAVES
octaves down from each scale's largest value are kept; smaller values are one count, and stand for 0.
Bins never move with the data, so nothing is ever rescaled or interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

OCTAVES = 16
# k, by the number of scales: the most digits that keep a histogram within MAX_BINS, 33.5 MB of int64, up to
# 16,384 scales; a single scale has 65,536 bins, 0.5 MB.
FEWEST_DIGITS, MOST_DIGITS = 3, 11
MAX_BINS = 2**22
# Biased exponents. The lowest octave of a window is one of normal numbers, so subnormal ones, like 0, count as 0.
BIAS, BIAS64, LOWEST_TOP = 127, 1023, OCTAVES
MANTISSA, MANTISSA64 = 23, 52
_CHUNK = 2**17  # values counted at a time: their slots stay in the cache


def digits(n_scales: int) -> int:
    """Return k: an octave has 2^k bins."""
    room = MAX_BINS // (n_scales * 2 * OCTAVES)
    return min(max(room.bit_length() - 1, FEWEST_DIGITS), MOST_DIGITS)


@dataclass(frozen=True)
class Histogram:
    """A histogram that depends on the multiset of values alone, not on their order or their division into batches.

    When a scale's top octave rises, counts move down by whole octaves, and what falls out of the window is
    added to `underflow`: what would have been counted there from the start.
    """

    amax: Tensor  # (*scale_shape) float64: the largest |x|, exactly
    top: Tensor  # (n_scales) int64: biased exponent of the highest octave
    counts: Tensor  # (n_scales, 2, OCTAVES * 2^k) int64: x > 0 and x < 0, each by rising |x|
    underflow: Tensor  # (n_scales) int64: values below the window, zeros too

    @classmethod
    def of(cls, x: Tensor) -> Histogram:
        """Count x (n_obs, *scale_shape, group) float, finite, non-empty, as float32."""
        rows, amax, top = _rows(x)
        k = digits(len(rows))
        counts, underflow = _count(rows, _lowest(top, k), k)
        return cls(amax.double().view(x.shape[1:-1]), top.long(), counts, underflow)

    @property
    def k(self) -> int:
        return (self.counts.shape[-1] // OCTAVES).bit_length() - 1

    @property
    def unit(self) -> Tensor:
        """The power of two at the foot of the top octave, (n_scales) float64; amax is in [1, 2) of them."""
        return ((self.top - BIAS + BIAS64) << MANTISSA64).view(torch.float64)

    @property
    def n_values(self) -> Tensor:
        """The number of values, (n_scales) int64."""
        return self.counts.sum(dim=(1, 2)) + self.underflow

    @property
    def centres(self) -> Tensor:
        """The middle of each bin, (OCTAVES * 2^k) float64, in units; the same for all scales."""
        return self._feet + self.half_widths

    @property
    def half_widths(self) -> Tensor:
        """The half of each bin's width, (OCTAVES * 2^k) float64, in units: no value is further from its bin's centre.

        Values in `underflow` are the exception: they stand for 0, and are below 2^(1 - OCTAVES).
        """
        octaves: Tensor = 2.0 ** torch.arange(1 - OCTAVES, 1, dtype=torch.float64)
        bins: int = 2**self.k
        return octaves.repeat_interleave(bins) / (2 * bins)

    @property
    def _feet(self) -> Tensor:
        """The beginning of each bin, (OCTAVES * 2^k) float64, in units."""
        n, k = self.counts.shape[-1], self.k
        return ((torch.arange(n) + ((BIAS64 + 1 - OCTAVES) << k)) << (MANTISSA64 - k)).view(torch.float64)

    def position(self, t: Tensor) -> Tensor:
        """Return the first bin with centre >= t, or the number of bins: t (any shape) float64 >= 0, units -> int64.

        A bin's centre is where its half-bins meet, so half-bins are counted, as bins are, by digits.
        """
        k = self.k
        # One less than t's bits, so that a t just at a centre is still in the half-bin below it.
        half = (t.view(torch.int64) - 1) >> (MANTISSA64 - k - 1)
        return half.add_(1).bitwise_right_shift_(1).sub_((BIAS64 + 1 - OCTAVES) << k).clamp_(0, self.counts.shape[-1])

    def linear(self) -> Tensor:
        """|x| counted in equal bins over [0, 2) units, (n_scales, 2^(k+1)) int64: 2^k or more of them lie up to amax.

        Exact: in each octave below the top one, twice as many bins lie in one of these.
        """
        by_octave = self.counts.sum(1).unflatten(-1, (OCTAVES, -1))
        parts = [by_octave[:, OCTAVES - 1 - j].unflatten(-1, (-1, 2**j)).sum(-1) for j in range(self.k + 1)]
        rest = by_octave[:, : OCTAVES - 1 - self.k].sum(dim=(1, 2)) + self.underflow
        return torch.cat([rest[:, None], *reversed(parts)], dim=-1)

    def absorb(self, other: Histogram) -> None:
        """Count the other's values as well; the other stays as it is."""
        self._reach(other.amax, other.top)
        self.underflow.add_(other.underflow)
        below = self.top - other.top
        for by in below.unique().tolist():
            if by == 0 and not below.any():
                self.counts.add_(other.counts)
                return
            at = (below == by).nonzero().squeeze(-1)
            kept, lost = _lowered(other.counts[at], by)
            self.counts[at] += kept
            self.underflow[at] += lost

    def add(self, x: Tensor) -> None:
        """Count x as `absorb` would its histogram, without making one: the time goes by the values, not by the bins."""
        rows, amax, top = _rows(x)
        self._reach(amax.double().view_as(self.amax), top.long())
        n_bins = self.counts.shape[-1]
        slot = _slots(rows, _lowest(self.top.int(), self.k), self.k).long()
        sign = slot.div(n_bins + 1, rounding_mode="floor")
        inside = slot.sub_(sign * (n_bins + 1)) > 0
        self.underflow.add_((~inside).sum(-1))
        at = (torch.arange(len(rows))[:, None] * 2 + sign) * n_bins + slot - 1
        at = at[inside]
        self.counts.view(-1).index_add_(0, at, torch.ones_like(at))

    def _reach(self, amax: Tensor, top: Tensor) -> None:
        """Let windows rise to what is larger."""
        rise = (top - self.top).clamp(min=0)
        for by in rise.unique().tolist():
            if by:
                self._lower((rise == by).nonzero().squeeze(-1), by)
        self.top.add_(rise)
        torch.maximum(self.amax, amax, out=self.amax)

    def _lower(self, at: Tensor, by: int) -> None:
        """Give the scales `at` a window that is `by` octaves higher."""
        self.counts[at], lost = _lowered(self.counts[at], by)
        self.underflow[at] += lost


def beyond(counts: Tensor) -> Tensor:
    """Return the sum of the bins from i on: counts (..., n_bins) -> (..., n_bins + 1)."""
    return torch.nn.functional.pad(counts.flip(-1).cumsum(-1).flip(-1), (0, 1))


def _lowered(counts: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """Return counts (n, 2, OCTAVES * 2^k) `by` octaves further down, and how many fell out, (n)."""
    out = min(by, OCTAVES) * (counts.shape[-1] // OCTAVES)
    return torch.nn.functional.pad(counts[..., out:], (0, out)), counts[..., :out].sum(dim=(1, 2))


def _bits(x: Tensor) -> Tensor:
    return x.float().view(torch.int32)


def _rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return x (n_obs, *scale_shape, group) as (n_scales, values), and amax and top, (n_scales) each."""
    n = x.shape[1:-1].numel()
    rows = x.reshape(x.shape[0], n, x.shape[-1]).movedim(1, 0).reshape(n, -1)
    amax = torch.maximum(rows.amax(-1), -rows.amin(-1))
    return rows, amax, (_bits(amax) >> MANTISSA).clamp(min=LOWEST_TOP)


def _lowest(top: Tensor, k: int) -> Tensor:
    """Return the code of each window's first bin."""
    return (top - (OCTAVES - 1)) << k


def _slots(rows: Tensor, lowest: Tensor, k: int) -> Tensor:
    """Return the slot of each value: (n, values) int32, bins from 1 on, x < 0 after x > 0.

    Slot 0 of each sign is for what lies below the window. rows (n, values) float; lowest (n) int32
    """
    bits, side = _bits(rows), (OCTAVES << k) + 1
    slot = bits.bitwise_and(0x7FFFFFFF).bitwise_right_shift_(MANTISSA - k)
    slot.sub_(lowest[:, None] - 1).clamp_(min=0)
    return slot.add_(bits.bitwise_right_shift(31).bitwise_and_(side))  # 31: all ones where x < 0


def _count(rows: Tensor, lowest: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Count rows (n_scales, n) float; lowest (n_scales) int32 is the code of each window's first bin."""
    n_scales, n = rows.shape
    n_bins = OCTAVES << k
    counts = torch.zeros(n_scales, 2, n_bins, dtype=torch.int64)
    underflow = torch.zeros(n_scales, dtype=torch.int64)
    side = n_bins + 1
    together = max(_CHUNK // n, 1)
    for some in torch.arange(n_scales).split(together):
        first, end = int(some[0]), int(some[-1]) + 1
        offset = torch.arange(end - first, dtype=torch.int32)[:, None] * (2 * side)
        for part in rows[first:end].split(_CHUNK, dim=-1):
            slot = _slots(part, lowest[first:end], k).add_(offset)
            found = torch.bincount(slot.flatten(), minlength=2 * side * (end - first)).view(-1, 2, side)
            counts[first:end] += found[..., 1:]
            underflow[first:end] += found[..., 0].sum(-1)
    return counts, underflow
