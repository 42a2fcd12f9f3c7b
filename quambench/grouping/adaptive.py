"""Groupings that give each layer a number of groups of its own, more where they pay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from quambench.core.errors import BadParameter
from quambench.grouping.base import GROUPINGS, ChannelStatistics, Grouping
from quambench.grouping.cluster import METHODS, by_layer, cluster
from quambench.grouping.groups import Groups
from quambench.models.config import ModelConfig

RULES = ("error", "variance")
Numbers = tuple[int, int]
"""Head groups, dim groups."""


@GROUPINGS.register("adaptive")
@dataclass(frozen=True)
class Adaptive(Grouping):
    """Another number of groups in each layer, from one side's `base` or under a budget.

    error     a budget of base^2 scales per SSD group and layer, on average, is spent one doubling of one
              layer's head or dim groups at a time, always where a scale more removes most of the layer's
              expected error over its signal; in every layer the sum over channels of the group's largest
              |x|, squared, over their energy
    variance  the user guide's: base x base, doubled on both sides where a layer's variance of x is above
              twice the median over layers, halved where it is below half. The guide gives no thresholds.
    """

    rule: str = "error"
    base: float = 4.0
    method: str = "kmeans"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise BadParameter(f"rule must be {' or '.join(RULES)} (got {self.rule!r})")
        if self.method not in METHODS:
            raise BadParameter(f"method must be {', '.join(METHODS)} (got {self.method!r})")
        if self.base not in (1, 2, 4, 8, 16):
            raise BadParameter(f"base must be 1, 2, 4, 8 or 16 (got {self.base!r})")

    def groups(self, statistics: Mapping[int, ChannelStatistics], config: ModelConfig) -> dict[int, Groups]:
        def candidates(s: ChannelStatistics) -> dict[Numbers, Groups]:
            return {n: cluster(s, config, *n, self.method) for n in numbers_of(config)}

        found = by_layer(candidates, statistics)
        rule = self._by_error if self.rule == "error" else self._by_variance
        chosen = rule(found, statistics)
        return {layer: found[layer][numbers] for layer, numbers in chosen.items()}

    def _by_error(
        self, candidates: Mapping[int, Mapping[Numbers, Groups]], statistics: Mapping[int, ChannelStatistics]
    ) -> dict[int, Numbers]:
        errors = {
            layer: {numbers: expected_error(groups, statistics[layer]) for numbers, groups in of.items()}
            for layer, of in candidates.items()
        }
        chosen = dict.fromkeys(candidates, (1, 1))
        left = len(candidates) * (int(self.base) ** 2 - 1)  # scales beyond one per SSD group and layer
        while True:
            steps = [
                ((errors[layer][(h, d)] - errors[layer][more]) / cost, -layer, more, cost)
                for layer, (h, d) in chosen.items()
                for more in ((2 * h, d), (h, 2 * d))
                if more in errors[layer] and (cost := more[0] * more[1] - h * d) <= left
            ]
            gain, layer, more, cost = max(steps, default=(0.0, 0, (1, 1), 0))
            if gain <= 0:
                return chosen
            chosen[-layer] = more
            left -= cost

    def _by_variance(
        self, candidates: Mapping[int, Mapping[Numbers, Groups]], statistics: Mapping[int, ChannelStatistics]
    ) -> dict[int, Numbers]:
        variances = {layer: s.energy.mean().item() for layer, s in statistics.items()}
        usual = median(variances.values())
        chosen = {}
        for layer, variance in variances.items():
            factor = 2.0 if variance > 2 * usual else 0.5 if variance < usual / 2 else 1.0
            most = max(candidates[layer])
            chosen[layer] = tuple(max(1, min(int(self.base * factor), limit)) for limit in most)
        return chosen  # type: ignore[return-value]


def numbers_of(config: ModelConfig) -> list[Numbers]:
    """Return the powers of two, up to 16, that the heads of an SSD group and the channels of a head allow."""
    heads = config.n_heads // config.n_groups
    sides = [[n for n in (1, 2, 4, 8, 16) if n <= most] for most in (heads, config.head_dim)]
    return [(h, d) for h in sides[0] for d in sides[1]]


def expected_error(groups: Groups, statistics: ChannelStatistics) -> float:
    """Return rounding error over signal, up to a factor that all groups share.

    It is the sum over channels of (the group's largest |x|)^2, over their energy. A layer without any value has no
    error, in however many groups.
    """
    if not statistics.energy.any():
        return 0.0
    largest = groups.per_channel(groups.largest(statistics.amax[groups.channel_index]))
    return (largest.square().sum() / statistics.energy.sum()).item()
