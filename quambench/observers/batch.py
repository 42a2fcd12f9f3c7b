"""A batch of a site's values, and what several observers need of it, computed once."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from quambench.observers.histogram import Histogram
from quambench.observers.tail import largest


class Batch:
    """A batch: x (n_obs, *scale_shape, group) float, laid out by grids/granularity.py."""

    def __init__(self, x: Tensor) -> None:
        self.x = x.detach()
        self._tail: Tensor | None = None

    @property
    def values_per_scale(self) -> int:
        """The number of values that each scale has in this batch."""
        return self.x.shape[0] * self.x.shape[-1]

    @cached_property
    def magnitude(self) -> Tensor:
        """|x|, of x's shape."""
        return self.x.abs()

    @cached_property
    def amax(self) -> Tensor:
        """The largest |x| of each scale, (*scale_shape) of x's dtype."""
        return self.magnitude.amax(dim=(0, -1))

    @cached_property
    def histogram(self) -> Histogram:
        """The histogram of the signed values. It is shared: an observer that keeps it keeps a copy."""
        return Histogram.of(self.x)

    @cached_property
    def n_not_finite(self) -> int:
        """The number of NaN and infinities. The largest magnitude alone tells whether there are any."""
        if torch.isfinite(self.amax).all():
            return 0
        return int((~torch.isfinite(self.x)).sum())

    def tail(self, n: int) -> Tensor:
        """Return the largest |x| of each scale, ascending: (*scale_shape, at least n).

        The longest tail asked for so far is kept: whoever asks for the longest first saves the others' selection.
        """
        if self._tail is None or self._tail.shape[-1] < n:
            self._tail = largest(self.magnitude.movedim(0, -2).flatten(-2), n)
        return self._tail
