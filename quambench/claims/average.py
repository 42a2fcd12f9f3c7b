"""Claims on σ, the newest batch's weight in the moving average: robust or fast."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quambench.claims.base import (
    BATCHES,
    DECREASE,
    INCREASE,
    TIMES,
    Claim,
    InRange,
    Interval,
    Measured,
    Row,
    family,
    row,
)
from quambench.claims.compared import compared
from quambench.claims.sources import Sources
from quambench.claims.stored import DECODE_KL, KL

SIGMAS = (0.05, 0.1, 0.2, 0.3)
ORDERS = 200  # random orders of the batches
NEAR = 0.05  # of the batches' mean
_STREAM = 20_251_125  # the orders' own: equal input, equal rows


@family(
    "σ of the moving average",
    "The α-quantile of each of 64 batches was collected once per percentile site; the recurrence then ran over 200"
    " random orders of them (each batch once, which flatters a small σ a little). Spread: standard deviation of the"
    " final average over orders, relative to the batches'"
    " mean. Batches needed: until the average is first within 5 % of that mean, on the mean over orders. A site is"
    " one observation. Quality rows compare stored cases.",
)
def sigma(sources: Sources) -> list[Row]:
    rows = []
    for name, shelf in sources.prose:
        words = "σ = 0.3 oscillates more than 0.05 (spread, as many times)"
        wide = Claim(words=words, figure="fast but oscillating", expects=InRange(1, math.inf))
        rows.append(row(wide, name, _oscillates, sources, name))
        slow = Claim(words="σ = 0.05 needs more batches than 0.3", figure="slow", expects=INCREASE)
        rows.append(row(slow, name, _slow, sources, name))
        for quality in (KL, DECODE_KL):
            robust = Claim(words=f"σ = 0.05 is better than 0.3, by {quality.words}", figure="robust", expects=DECREASE)
            old, new = "percentile[sigma=0.3]", "percentile[sigma=0.05]"
            rows.append(row(robust, name, compared, shelf, quality, old, new))
    return rows


def averages(quantiles: Tensor, sigma: float, orders: Tensor) -> Tensor:
    """Return (R, S): the recurrence's average after each batch, for each order.

    quantiles (S,); orders (R, S) indices
    """
    batches = quantiles[orders]
    along = [batches[:, 0]]
    for t in range(1, batches.shape[1]):
        along.append(along[-1] + sigma * (batches[:, t] - along[-1]))
    return torch.stack(along, dim=1)


def random_orders(n: int) -> Tensor:
    """Return (ORDERS, n) permutations, the same every time."""
    generator = torch.Generator().manual_seed(_STREAM)
    return torch.stack([torch.randperm(n, generator=generator) for _ in range(ORDERS)])


def spread(quantiles: Tensor, sigma: float) -> float:
    """Return the standard deviation of the final average over orders, relative to the mean batch."""
    final = averages(quantiles, sigma, random_orders(len(quantiles)))[:, -1]
    return (final.std() / quantiles.mean()).item()


def batches_needed(quantiles: Tensor, sigma: float) -> float:
    """Return after how many batches the average is first within NEAR of the batches' mean, on average over orders.

    An order in which it never is counts with all batches.
    """
    mean, n = quantiles.mean(), len(quantiles)
    near = (averages(quantiles, sigma, random_orders(n)) / mean - 1).abs() <= NEAR
    first = torch.where(near.any(1), near.int().argmax(1) + 1, n)
    return first.double().mean().item()


def _over_sites(sources: Sources, model: str) -> list[Tensor]:
    """Return the quantiles (S,) of each site whose batches differ at all. raises CannotMeasure"""
    return [q for q in sources.measured(model).seen.quantile.values() if q.std() > 0]


def _oscillates(sources: Sources, model: str) -> Measured:
    sites = _over_sites(sources, model)
    spreads = {s: torch.tensor([spread(q, s) for q in sites], dtype=torch.float64) for s in SIGMAS}
    shown = ", ".join(f"{s:g}: {x.mean().item() * 100:.2g} %" for s, x in spreads.items())
    return Measured(
        effect=Interval.of_ratio(spreads[0.3] / spreads[0.05]),
        unit=TIMES,
        n=f"{len(sites)} sites",
        data="64 batches in 200 orders",
        remark=f"spread by σ, mean over sites: {shown}",
    )


def _slow(sources: Sources, model: str) -> Measured:
    sites = _over_sites(sources, model)
    needed = {s: torch.tensor([batches_needed(q, s) for q in sites], dtype=torch.float64) for s in SIGMAS}
    shown = ", ".join(f"{s:g}: {x.mean().item():.2g}" for s, x in needed.items())
    return Measured(
        effect=Interval.of_mean(needed[0.05] - needed[0.3]),
        unit=BATCHES,
        n=f"{len(sites)} sites",
        data="64 batches in 200 orders",
        remark=f"batches needed by σ, mean over sites: {shown}",
    )
