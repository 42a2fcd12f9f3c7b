"""A model that trains in a blink, and the start that its scales are trained from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from quambench.calibration.collect import Task, calibrate
from quambench.calibration.refine.base import Progress, Refined, Refinement
from quambench.calibration.scales import Calibration
from quambench.grids.granularity import UNQUANTIZED
from quambench.grids.precision import Precision
from quambench.int8.fuse import prepare
from quambench.int8.model import QuantizedModel, quantize_model
from quambench.models import LanguageModel, ModelConfig, build
from quambench.models.sites import sites_of
from quambench.observers import ObserverSpec
from quambench.policy import Assignment

SHAPES = {
    "mamba": dict(architecture="mamba", d_model=12, n_layers=2, vocab_size=50, d_state=4, dt_rank=3),
    "mamba2": dict(
        architecture="mamba2", d_model=16, n_layers=2, vocab_size=50, d_state=4, head_dim=8, n_groups=2, chunk_size=5
    ),
}


@torch.no_grad()
def spoken(model: LanguageModel, n: int, length: int) -> Tensor:
    """(n, length) tokens that the model itself would say, so that its own next-token loss is hard to better."""
    chance = torch.Generator().manual_seed(3)
    tokens, state = torch.randint(model.config.vocab_size, (n, 1), generator=chance), None
    for _ in range(length - 1):
        logits, state = model(tokens[:, -1:], state)
        tokens = torch.cat([tokens, torch.multinomial(logits[:, -1].softmax(-1), 1, generator=chance)], dim=1)
    return tokens


@dataclass(frozen=True)
class Setting:
    """What a refinement is given."""

    prepared: LanguageModel
    precision: Precision
    start: Calibration
    sequences: Tensor

    @property
    def quantized(self) -> QuantizedModel:
        return quantize_model(self.prepared, self.start, self.precision)

    def scaled(self, site: str, factor: float) -> Setting:
        """One site's scale is off by a factor."""
        scales = {**self.start.scales, site: self.start.scales[site] * factor}
        return dataclasses.replace(self, start=dataclasses.replace(self.start, scales=scales))

    def refined(self, refinement: Refinement, progress: Progress = lambda done, total: None) -> Refined:
        return refinement.refine(self.prepared, self.quantized, self.start, self.sequences, progress)


@pytest.fixture(scope="session")
def make_setting(randomize: Callable[[nn.Module, int], None]) -> Callable[..., Setting]:
    """(architecture, precision, grain, left float) -> Setting; grain 0 is each site's coarsest, 1 the next."""

    def make(architecture: str, precision: Precision | None = None, grain: int = 0, floats: tuple = ()) -> Setting:
        precision = precision or Precision()
        with torch.random.fork_rng():
            model = build(ModelConfig(**SHAPES[architecture])).requires_grad_(False)
        randomize(model, 1)
        prepared = prepare(model)
        sequences = spoken(prepared, 12, 9)
        plan = {
            name: Assignment(
                ObserverSpec("running_max"), UNQUANTIZED if name in floats else site.allowed[: grain + 1][-1]
            )
            for name, site in sites_of(prepared.config).items()
        }
        task = Task(plan, precision.act_bits, precision.symmetric)
        return Setting(prepared, precision, calibrate(prepared, sequences, {"k": task}, "model")["k"], sequences)

    return make


@pytest.fixture(scope="session", params=SHAPES)
def setting(request: pytest.FixtureRequest, make_setting: Callable[..., Setting]) -> Setting:
    return make_setting(request.param)
