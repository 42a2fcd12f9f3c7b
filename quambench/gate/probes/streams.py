"""The stored questions, and how they were made. `make_streams` gives the stored file again."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from quambench.gate.probes.models import ARCHITECTURES, BARE, CONFIGS, LOW, LOW_STEPS, in_pieces, model_of, stepped
from quambench.int8 import fuse
from quambench.int8.site_grid import SymmetricGrid
from quambench.models import build

# No quotient of the step's probes lies nearer to a rounding tie than this, relative to the largest
# integer of its grid: about twice the largest error of a float32 quotient made of a few dozen
# operations (10 eps), so the integers are the same on every machine. 3.0e-4 steps at 8 bits.
TIE_MARGIN = 20 * torch.finfo(torch.float32).eps


def make_streams() -> dict[str, Tensor]:
    """All streams, from fixed seeds; the models' seeds are the first that keep TIE_MARGIN."""
    streams = {"ties": _ties(), "amax": _amax(), "weights": _weights(), "sequences": _sequences()}
    streams |= {f"batches/{name}": batches for name, batches in _batches().items()}
    for kind in CONFIGS:
        streams |= next(
            made for seed in range(1000) if tie_margin(streams | (made := _model(kind, seed)), kind) > TIE_MARGIN
        )
    return {name: tensor.contiguous() for name, tensor in streams.items()}


def tie_margin(streams: dict[str, Tensor], kind: str) -> float:
    """Least distance of any quotient of the step's probes from a rounding tie, by its grid's largest integer."""
    least = [0.5]
    original = SymmetricGrid.quantize

    def watching(self: SymmetricGrid, x: Tensor) -> Tensor:
        quotient = x.double() / self.scale.double()
        top = 2 ** (self.bits - 1) - 1
        within = quotient[(quotient > -top - 1.4) & (quotient < top + 0.4)]  # beyond, every rounding saturates
        least.extend(((within - within.floor() - 0.5).abs() / top).tolist())
        return original(self, x)

    with patch.object(SymmetricGrid, "quantize", watching):
        stepped(streams, kind, disturb=_as_it_is)
        if kind in ARCHITECTURES:
            stepped(streams, kind, LOW, LOW_STEPS, disturb=_as_it_is)
        if kind in BARE:
            in_pieces(streams, kind, disturb=_as_it_is)
    return min(least)


def _as_it_is(x: Tensor) -> Tensor:
    """A disturbance that is none: the model then goes through its grids, where they can be watched."""
    return x


def _ties() -> Tensor:
    """At scale 0.5: every tie within the grid and just beyond it, and what lies about them; float32."""
    steps = torch.arange(-131, 132).float() * 0.5
    ties = steps + 0.25
    near = torch.cat([torch.nextafter(ties, torch.tensor(float(sign))) for sign in (-1e9, 1e9)])
    odd = torch.tensor([0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38, -64.0, 63.5, 64.0, -64.25, 63.75])
    return torch.cat([steps, ties, near, odd])


def _amax() -> Tensor:
    return torch.tensor([0.0, 1e-40, 1e-7, 1e-6, 1.27e-4, 1e-3, 0.1, 1.0, 127.0, 1e4, 3e38])


def _weights() -> Tensor:
    """(12, 6) float64: a row of zeros, a row all negative, a row with an outlier; ties at powers of two."""
    weight = torch.randn(12, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight[0] = 0
    weight[3] = -weight[3].abs()
    weight[5, 2] = 40.0
    weight[7] = torch.tensor([127.0, 0.5, 1.5, -0.5, -2.5, -127.0])
    return weight


def _sequences() -> Tensor:
    return torch.randint(16, (6, 9), generator=torch.Generator().manual_seed(2))


def _batches() -> dict[str, Tensor]:
    """Each (batches, positions, channels) float32."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    spread = torch.tensor([0.1, 0.5, 1.0, 2.0, 7.0])  # channels differ
    ordinary = draw(6, 30, 5) * spread
    outlier = ordinary.clone()
    outlier[2, 17, 1] = -300.0
    heavy = ordinary.clone()
    heavy[4] *= 20
    rising = ordinary * torch.tensor([1.0, 2.0, 4.0, 8.0, 4.0, 1.0])[:, None, None]
    return {
        "ordinary": ordinary,
        "one outlier": outlier,
        "positive": ordinary.abs(),
        "negative": -ordinary.abs(),
        "mostly negative": torch.where(ordinary > 1.0, ordinary * 0.1, -ordinary.abs()),
        "rising, falling": rising,
        "one heavy batch": heavy,
        "constant": torch.full((3, 4, 5), 0.75),
        "zeros": torch.zeros(3, 4, 5),
        "one value": torch.tensor([-2.0]).view(1, 1, 1),
    }


def _model(kind: str, seed: int) -> dict[str, Tensor]:
    """Weights, and scales at which nearly all values fit the grid and a few saturate."""
    generator = torch.Generator().manual_seed(1000 + seed)
    config = CONFIGS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(config)
    streams: dict[str, Tensor] = {}
    for name, parameter in model.state_dict().items():
        if name != "lm_head.weight" or not config.tie_embeddings:
            value = parameter + 0.3 * torch.randn(parameter.shape, generator=generator)
            streams[f"{kind}/weight/{name}"] = value + 2.0 if name.endswith(("dt_bias", "dt_proj.bias")) else value
    seen: dict[str, Any] = {}
    with torch.inference_mode():
        sequences = _sequences()
        fuse.prepare(model_of(streams, kind))(sequences, tap=lambda site, x: seen.setdefault(site, x))
    streams |= {f"{kind}/scale/{site}": (x.abs().amax() * 0.8 / 127).float() for site, x in seen.items()}
    return streams
