"""Thresholds from a bell curve fitted to the values: ACIQ, and the guide's 2.5 σ."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from quambench.core.errors import BadParameter
from quambench.grids.grid import q_max
from quambench.observers.base import OBSERVERS, Observer
from quambench.observers.batch import Batch

# Mean of |x| - c where it is positive, in units of the prior's width: σ, the root mean square, for a normal
# distribution, b, the mean of |x|, for Laplace's.
EXCESS: dict[str, Callable[[float], float]] = {
    "gauss": lambda c: math.sqrt(2 / math.pi) * math.exp(-c * c / 2) - c * math.erfc(c / math.sqrt(2)),
    "laplace": lambda c: math.exp(-c),
}
# Log-likelihoods per value, maximal over the width: -1/2 - log(σ √(2π)) and -1 - log(2 b). The former is
# larger while σ / b is less than
GAUSS_BELOW = math.sqrt(2 * math.e / math.pi)
_CHUNK = 2**17  # values held in float64 at a time


@cache
def optimal_clip(prior: str, step: float) -> float:
    """Return the c that minimizes (step c)²/12 + E[(|x| - c)²; |x| > c], in units of the prior's width.

    step  the grid's step in units of c: 1 / q_max for ours, 2 / 2^bits in the paper

    Its derivative, step² c / 6 - 2 E[|x| - c; |x| > c], rises from below 0.
    Source: Banner et al., Post-training 4-bit quantization of convolutional networks (ACIQ), 2019.
    """
    from scipy.optimize import brentq  # a third of a second, which others need not wait for

    return float(brentq(lambda c: step**2 * c / 6 - 2 * EXCESS[prior](c), 0, 1 / step + 10))


@dataclass
class _Moments(Observer):
    """Base of observers that remember how many values there were, the sum of |x| and of x², and amax.

    Sums in float64: another order of the same batches may change their last digits, and with them a float32
    scale by 1 ulp at most.
    """

    order_matters: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True
    memory: ClassVar[tuple[str, ...]] = ("amax", "n", "sums")

    def __post_init__(self) -> None:
        self.n: Tensor | None = None  # () int64: values per scale
        self.sums: Tensor | None = None  # (2, *scale_shape) float64: of |x| and of x²
        super().__post_init__()

    def take(self, batch: Batch) -> None:
        self._add(torch.tensor(batch.values_per_scale), _sums(batch.x), batch.amax.double())

    def join(self, other: _Moments) -> None:
        assert other.n is not None
        assert other.sums is not None
        assert other.amax is not None
        self._add(other.n, other.sums, other.amax)

    def _add(self, n: Tensor, sums: Tensor, amax: Tensor) -> None:
        if self.n is None or self.sums is None or self.amax is None:
            self.n, self.sums, self.amax = n.clone(), sums.clone(), amax.clone()
            return
        self.n, self.sums, self.amax = self.n + n, self.sums + sums, torch.maximum(self.amax, amax)

    @property
    def mean_and_rms(self) -> tuple[Tensor, Tensor]:
        """Return the mean of |x| and the root of the mean of x², (*scale_shape) float64 each."""
        assert self.n is not None
        assert self.sums is not None
        mean, square = self.sums / self.n
        return mean, square.sqrt()


def _sums(x: Tensor) -> Tensor:
    """Return the sums of |x| and of x², (2, *scale_shape) float64, of x (n_obs, *scale_shape, group)."""
    long = 0 if x.shape[0] >= x.shape[-1] else -1
    some = max(_CHUNK * x.shape[long] // x.numel(), 1)
    parts = (part.double().abs() for part in x.split(some, dim=long))
    return torch.stack([torch.stack([p.sum(dim=(0, -1)), p.square_().sum(dim=(0, -1))]) for p in parts]).sum(0)


@OBSERVERS.register("aciq")
@dataclass
class Aciq(_Moments):
    """The threshold with the least expected error for values from a bell curve around 0, at most amax.

    The expected error is that of rounding, step²/12 for all values, and of clipping. `prior` is gauss, of
    width σ = rms, laplace, of width b = mean |x|, or auto: whichever makes the values seen more likely.

    The paper's step is 2 clip / 2^bits, and its table (3.92 σ and 9.89 b at 8 bits) rests on it. Here it is
    this grid's, clip / q_max: the same within 1 % at 8 bits, but twice as large at 2.
    """

    follows_grid: ClassVar[bool] = True

    prior: str = "auto"

    def __post_init__(self) -> None:
        known = (*EXCESS, "auto")
        if self.prior not in known:
            raise BadParameter(f"prior must be one of {', '.join(known)} (got {self.prior!r})")
        super().__post_init__()

    def threshold(self) -> Tensor:
        assert self.amax is not None
        b, sigma = self.mean_and_rms
        gauss, laplace = (w * optimal_clip(p, 1 / q_max(self.bits)) for p, w in (("gauss", sigma), ("laplace", b)))
        fitted = {"gauss": gauss, "laplace": laplace, "auto": torch.where(sigma < GAUSS_BELOW * b, gauss, laplace)}
        return torch.minimum(fitted[self.prior], self.amax)


@OBSERVERS.register("gauss_2.5sigma")
@dataclass
class TwoAndAHalfSigma(_Moments):
    """2.5 σ, σ = rms, whatever the bits and the largest value: the user guide's formula.

    It is about ACIQ's for a normal distribution at 4 bits (2.55 σ); at 8 bits that one is 3.92 σ.
    """

    exceeds_data: ClassVar[bool] = True

    def threshold(self) -> Tensor:
        return 2.5 * self.mean_and_rms[1]
