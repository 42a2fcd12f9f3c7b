"""Claims, and the rule that says when a measurement confirms one.

To add a family of claims: a module beside this one with a function under `@FAMILIES.register(name)`; import
it in __init__.py.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, ParamSpec, Self

from torch import Tensor

from quambench.core.registry import Registry

if TYPE_CHECKING:
    from quambench.claims.sources import Sources

P = ParamSpec("P")

LEVEL = 0.05  # an interval misses the truth with this probability: 95 %


_LARGEST = math.log(sys.float_info.max)  # whose exp is a number


class Verdict(StrEnum):
    """The verdict on a claim, in words."""

    CONFIRMED = "confirmed"
    NOT_CONFIRMED = "not confirmed"
    CONTRADICTED = "contradicted"
    CANNOT = "cannot be measured here"


@dataclass(frozen=True, slots=True)
class Interval:
    """An effect with its 95 % interval; low = high where it has no spread, infinite where n tells nothing."""

    estimate: float
    low: float
    high: float

    @classmethod
    def of(cls, estimate: float, standard_error: float, n: int, level: float = LEVEL) -> Self:
        """Return the interval by Student's t, n - 1 degrees of freedom."""
        if n < 2 or math.isnan(standard_error):
            return cls(estimate, -math.inf, math.inf)
        from scipy import stats  # here: importing it takes a second and a half

        reach = float(stats.t.isf(level / 2, n - 1)) * standard_error
        return cls(estimate, estimate - reach, estimate + reach)

    def widened(self, by: float) -> Self:
        """Return the interval with each half widened by another, independent source of error of that size."""
        down, up = self.estimate - self.low, self.high - self.estimate
        return replace(self, low=self.estimate - math.hypot(down, by), high=self.estimate + math.hypot(up, by))

    @classmethod
    def of_mean(cls, values: Tensor, level: float = LEVEL) -> Self:
        """Return the interval of the mean of independent values (n,)."""
        x = values.double()
        error = (x.std() / len(x) ** 0.5).item() if len(x) > 1 else math.nan
        return cls.of(x.mean().item(), error, len(x), level)

    @classmethod
    def of_ratio(cls, ratios: Tensor) -> Self:
        """Return the interval of the geometric mean of independent ratios (n,), all above 0."""
        logs = cls.of_mean(ratios.double().log())
        return cls(*(math.exp(x) if x < _LARGEST else math.inf for x in (logs.estimate, logs.low, logs.high)))

    @classmethod
    def exactly(cls, value: float) -> Self:
        """Return the interval of a count, or of arithmetic, which has no spread."""
        return cls(value, value, value)

    def from_zero(self) -> Self:
        """Return the interval cut at 0, for an effect that cannot be negative."""
        return replace(self, low=max(self.low, 0.0))

    @property
    def exact(self) -> bool:
        return self.low == self.high


class Expectation(ABC):
    """When a claim is confirmed, by the 95 % interval of what was measured:

    - **A gain (or a loss) between lo and hi.** Confirmed if the interval excludes 0 and overlaps [lo, hi] on the
      claimed side. Contradicted if the whole interval falls short of lo: significantly less, or of the opposite
      sign. Else not confirmed: n is too small to tell, or the effect is larger than claimed. Where the guide
      names no figure, lo is 0 and hi infinite: only the sign is judged.
    - **A share, a ratio, a count or a range between lo and hi.** Confirmed if the whole interval lies inside
      [lo, hi], contradicted if the whole interval lies outside, else not confirmed.
    - **No gain.** Confirmed if the whole interval is on the side of harm or at 0, contradicted if it is wholly on
      the side of a gain, else not confirmed: what gain could hide, the interval says.

    Differences between two cases are paired by document or item, and each case's noise floor (how far it moved when
    it was measured again under other numerics, stored with it) widens the interval: what another machine could turn
    round is not confirmed.

    Each interval is its own row's: of a hundred rows without any effect, five would seem to have one.

    A figure without a range stands for whatever rounds to it: "+0.5" for 0.45 to 0.55, "×20" for 15 to 25.
    A number without a spread (arithmetic, counts, losses on fixed data) is its own interval and prints as exact.
    """

    @abstractmethod
    def verdict(self, effect: Interval) -> Verdict:
        """Judge an effect, which is in the unit of the expectation's own numbers."""


@dataclass(frozen=True, slots=True)
class Gain(Expectation):
    """A difference in [low, high], both on one side of 0; [-inf, 0] is any decrease, [0, inf] any increase."""

    low: float
    high: float

    def verdict(self, effect: Interval) -> Verdict:
        increase = self.low >= 0
        near, far = (self.low, self.high) if increase else (-self.high, -self.low)
        least, most = (effect.low, effect.high) if increase else (-effect.high, -effect.low)
        if most < near:
            return Verdict.CONTRADICTED
        return Verdict.CONFIRMED if 0 < least <= far else Verdict.NOT_CONFIRMED


INCREASE, DECREASE = Gain(0, math.inf), Gain(-math.inf, 0)


@dataclass(frozen=True, slots=True)
class InRange(Expectation):
    """A share, ratio or count in [low, high]."""

    low: float
    high: float

    def verdict(self, effect: Interval) -> Verdict:
        if effect.high < self.low or effect.low > self.high:
            return Verdict.CONTRADICTED
        inside = self.low <= effect.low and effect.high <= self.high
        return Verdict.CONFIRMED if inside else Verdict.NOT_CONFIRMED


@dataclass(frozen=True, slots=True)
class NoGain(Expectation):
    """A difference that is no improvement; `higher`: larger numbers are better."""

    higher: bool

    def verdict(self, effect: Interval) -> Verdict:
        least, most = (effect.low, effect.high) if self.higher else (-effect.high, -effect.low)
        if least > 0:
            return Verdict.CONTRADICTED
        return Verdict.CONFIRMED if most <= 0 else Verdict.NOT_CONFIRMED


def as_written(figure: str, factor: float = 1.0) -> tuple[float, float]:
    """Return the range that rounds to a figure, times a factor: "0.5" -> (0.45, 0.55), "-0.4" -> (-0.45, -0.35)."""
    number = Decimal(figure)
    digit = int(number.as_tuple().exponent) if "." in figure else int(number.normalize().as_tuple().exponent)
    half = Decimal(5).scaleb(digit - 1)
    return float(number - half) * factor, float(number + half) * factor


@dataclass(frozen=True, slots=True)
class Unit:
    """The way in which an effect is printed: times `factor`, followed by `name`; with a sign where it is a
    difference.
    """

    name: str
    factor: float = 1.0
    signed: bool = False

    @property
    def of_level(self) -> str:
        """The unit of the numbers whose difference has this unit."""
        return "%" if self.name == "pp" else self.name


POINTS = Unit("pp", 100, signed=True)  # percentage points
MNAT = Unit("mnat/token", 1e3, signed=True)
PERCENT = Unit("%", 100)
TIMES = Unit("×")
SECONDS = Unit("CPU s")
BATCHES = Unit("batches", signed=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A claim of the guide.

    words    one sentence
    figure   the guide's figure as it is written there; "" where there is none
    expects  the expectation that judges a measurement
    """

    words: str
    figure: str = ""
    expects: Expectation


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A measured effect.

    effect   in plain numbers (shares, nats, ratios)
    unit     the way in which it is printed
    n, data  in words
    """

    effect: Interval
    unit: Unit
    n: str
    data: str
    remark: str = ""


class CannotMeasure(Exception):
    """The reason why a claim cannot be measured, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the table."""

    claim: Claim
    model: str  # "" where no model enters
    measured: Measured | None
    why: str = ""  # the reason why it cannot be measured

    @property
    def verdict(self) -> Verdict:
        return self.claim.expects.verdict(self.measured.effect) if self.measured else Verdict.CANNOT


def row(claim: Claim, model: str, measure: Callable[P, Measured], *args: P.args, **kwargs: P.kwargs) -> Row:
    """Return the row of measure(*args), or of the reason why it cannot be measured."""
    try:
        return Row(claim=claim, model=model, measured=measure(*args, **kwargs))
    except CannotMeasure as error:
        return Row(claim=claim, model=model, measured=None, why=str(error))


def cannot(words: str, figure: str, why: str) -> Row:
    """Return the row of a claim that cannot be measured here."""
    return Row(claim=Claim(words=words, figure=figure, expects=INCREASE), model="", measured=None, why=why)


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of claims, with a table of its own."""

    title: str
    about: str  # what was compared with what, in plain words
    rows: Callable[[Sources], list[Row]]


FAMILIES: Registry[Family] = Registry("family of claims", "quambench/claims/")


def family(title: str, about: str) -> Callable[[Callable[[Sources], list[Row]]], Family]:
    """Return a decorator that registers a function that makes rows, under its title."""
    return lambda rows: FAMILIES.add(title, Family(title, about, rows))
