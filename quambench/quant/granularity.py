"""How many values share a scale. The one place that lays a tensor out for observers.

An observer sees (n_obs, *scale_shape, group): n_obs observations, and in each of them `group`
values per scale. So it needs to know nothing of sites, axes or heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from quambench.registry import Registry


@dataclass(frozen=True, slots=True)
class Granularity:
    """lay_out   (B, ..., C) float -> (n_obs, *scale_shape, group)
    expand    scale (*scale_shape), and the site's tensor -> a scale that broadcasts to the tensor
    """

    lay_out: Callable[[Tensor], Tensor]
    expand: Callable[[Tensor, Tensor], Tensor]


GRANULARITIES: Registry[Granularity] = Registry("granularity", "quambench/quant/granularity.py")

# One scale. An activation (B, L, C) is B*L observations of C values; a state (B, H, P, N) has B of H*P*N.
GRANULARITIES.add(
    "tensor",
    Granularity(
        lay_out=lambda x: x.flatten(0, -2) if x.ndim == 3 else x.flatten(1),
        expand=lambda scale, x: scale,
    ),
)
# One scale per channel of the last axis: (B, L, C) -> (B*L, C, 1).
GRANULARITIES.add(
    "channel",
    Granularity(lay_out=lambda x: x.flatten(0, -2)[..., None], expand=lambda scale, x: scale),
)
