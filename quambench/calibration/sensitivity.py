"""Sensitivity: how much each site, and each layer, costs if it alone is quantized, or it alone stays float.

The float model's own taps do it: what passes a chosen site is quantized and dequantized there. Tokens
go through in pieces with the state carried on, so that the state's scale shows too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quambench.calibration.collect import Task, calibrate
from quambench.calibration.scales import Calibration
from quambench.grids.precision import Precision
from quambench.int8.site_grid import SiteGrid, rounding_at, site_grids
from quambench.models.backbone import LanguageModel, Tap, forward_in_pieces, no_tap
from quambench.models.sites import layer_of, sites_of
from quambench.observers import ObserverSpec
from quambench.policy import Sensitivity
from quambench.policy.sensitivity import REMEDIES, remedied

WINDOWS, LENGTH, PIECE = 12, 64, 16  # sequences, tokens of each, tokens between two readings of the state


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of quantizing some sites."""

    kl: float  # nats/token, from the float model to this one
    output_mse: float  # mean squared error of the logits, in logits squared


class Scale:
    """A balance that weighs sets of sites against the float model on the same tokens.

    It works in float64, so that two machines weigh alike and a policy that goes by it makes the same plan.
    """

    def __init__(self, prepared: LanguageModel, tokens: Tensor) -> None:
        """Run the float model once. prepared is in float64; tokens (W, L) int64"""
        self._model, self._tokens = prepared, tokens
        self.config = prepared.config
        self._logits = self._run(no_tap)
        self._truth = F.log_softmax(self._logits, -1)

    @torch.inference_mode()
    def _run(self, tap: Tap) -> Tensor:
        return forward_in_pieces(self._model, self._tokens, PIECE, tap)

    def cost(self, grids: Mapping[str, SiteGrid], quantized: Collection[str]) -> Cost:
        """Return the cost of these sites, each on its own grid."""
        logits = self._run(rounding_at({site: grids[site] for site in quantized}))
        other = F.log_softmax(logits, -1)
        kl = (self._truth.exp() * (self._truth - other)).sum(-1).mean()
        return Cost(kl.item(), (logits - self._logits).square().mean().item())


def grids_of(prepared: LanguageModel, calibration: Calibration) -> dict[str, SiteGrid]:
    """Return every site's grid."""
    found = site_grids(calibration, prepared.config, calibration.act_bits, calibration.symmetric)
    return {site: grid.double() for site, grid in found.items()}


def by_site(scale: Scale, grids: Mapping[str, SiteGrid]) -> dict[str, tuple[Cost, Cost]]:
    """Return site -> (cost of this one alone quantized, of all but this one quantized)."""
    every = frozenset(sites_of(scale.config))
    return {site: (scale.cost(grids, {site}), scale.cost(grids, every - {site})) for site in sites_of(scale.config)}


def by_layer(scale: Scale, grids: Mapping[str, SiteGrid]) -> dict[int, tuple[Cost, Cost]]:
    """Return layer -> (cost of all its sites alone quantized, of all sites but its own quantized)."""
    every = frozenset(sites_of(scale.config))
    layers = {i: {site for site in every if layer_of(site) == i} for i in range(scale.config.n_layers)}
    return {i: (scale.cost(grids, own), scale.cost(grids, every - own)) for i, own in layers.items()}


def measure(
    prepared: LanguageModel,
    sequences: Tensor,
    observer: ObserverSpec,
    precision: Precision,
    model_digest: str,
    candidates: int | None = None,
) -> Sensitivity:
    """Measure what a policy asks for: each site's cost alone, and the cost of the worst sites under each remedy.

    sequences   (S, L) int64, the calibration's: the last WINDOWS of them weigh, all of them calibrate
    precision   a site that it keeps float is left out: nothing is to be gained there
    candidates  how many of the costliest sites remedies are weighed for; None: all
    """
    plans = remedied(prepared.config, observer)
    tasks = {name: Task(plan, precision.grid_bits) for name, plan in plans.items()}
    made = calibrate(prepared, sequences, tasks, model_digest)
    grids = {name: grids_of(prepared, calibration) for name, calibration in made.items()}
    scale = Scale(prepared, sequences[-WINDOWS:, :LENGTH])
    usual, *remedies = REMEDIES

    def cost(site: str, remedy: str) -> float:
        return scale.cost(grids[remedy], {site}).kl

    found = {site: {usual: cost(site, usual)} for site in sites_of(prepared.config) if precision.quantizes(site)}
    worst = sorted(found, key=lambda site: -found[site][usual])[:candidates]
    for name in remedies:
        for site in (site for site in worst if plans[name][site] != plans[usual][site]):
            found[site][name] = cost(site, name)
    return found
