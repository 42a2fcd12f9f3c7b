"""Claims on layers: which are the most sensitive."""

from __future__ import annotations

from torch import Tensor

from quambench.claims.base import INCREASE, LEVEL, MNAT, CannotMeasure, Claim, Interval, Measured, Row, family, row
from quambench.claims.fresh import GROUP, TOKENS, LayerCosts
from quambench.claims.sources import Sources

WAYS = {"alone": "quantized alone", "without": "left float alone"}


@family(
    "Sensitive layers",
    "KL to the float model with one layer quantized and the rest float, and what leaving one layer float saves when"
    " all others are quantized. Activations alone, `percentile`; weights stay float."
    " The first and the last layer against the costliest layer between them: positive says that the claim"
    " holds. Groups of four test windows are the observations; since the costliest is chosen on them, the"
    " interval is widened for as many choices as there are layers between.",
)
def ends(sources: Sources) -> list[Row]:
    rows = []
    for name, _ in sources.prose:
        for way, words in WAYS.items():
            for end in ("first", "last"):
                claim = Claim(
                    words=f"the {end} layer costs more than any between, {words}",
                    figure="most sensitive",
                    expects=INCREASE,
                )
                rows.append(row(claim, name, _measured, sources, name, way, end))
    return rows


def _measured(sources: Sources, model: str, way: str, end: str) -> Measured:
    found = sources.measured(model).layer_costs
    cost = costs(found, way)
    means = ", ".join(f"{mean * 1e3:.3g}" for mean in cost.mean(0).tolist())
    remark = f"by layer, {WAYS[way]}: {means} mnat/token"
    if way == "alone":
        worst = sorted(found.sites, key=lambda site: -found.sites[site])[:3]
        remark += "; costliest sites alone: " + ", ".join(f"{s} {found.sites[s] * 1e3:.3g}" for s in worst)
    return Measured(
        effect=Interval.of_mean(beyond_middle(cost, end), LEVEL / (cost.shape[1] - 2)),
        unit=MNAT,
        n=f"{len(cost)} groups",
        data=f"test part, groups of {GROUP} windows of {TOKENS} tokens",
        remark=remark,
    )


def costs(found: LayerCosts, way: str) -> Tensor:
    """Return (groups, n_layers) nats/token that each layer costs."""
    return found.alone if way == "alone" else found.every[:, None] - found.without


def beyond_middle(cost: Tensor, end: str) -> Tensor:
    """Return (groups,) cost of the first or last layer minus that of the costliest layer (on the mean) between them.

    raises CannotMeasure with fewer than three layers
    """
    if cost.shape[1] < 3:
        raise CannotMeasure(f"there is no layer between the first and the last of {cost.shape[1]}")
    middle = cost[:, 1:-1]
    worst = middle.mean(0).argmax()
    return cost[:, 0 if end == "first" else -1] - middle[:, worst]
