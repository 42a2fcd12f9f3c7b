"""The shared part of refinements: two disjoint parts of the data, scales as parameters, descent that keeps the best.

Everything is in float64 and without randomness, so that two machines find the same scales up to rounding. That
takes more than equal arithmetic: a step of descent through rounding multiplies a difference by about five,
and the last bits of a sum were six percent of a scale after 32 steps. So scales live on a grid (GRAIN).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from quambench.calibration.refine.base import Refinement
from quambench.calibration.scales import Calibration
from quambench.core.errors import BadCorpus, BadParameter
from quambench.grids.granularity import groups_at, layout
from quambench.grids.grid import MIN_SCALE, q_max
from quambench.int8.model import QuantizedModel
from quambench.int8.site_grid import SymmetricGrid, rounding_at, site_grids
from quambench.models.backbone import LanguageModel, Tap
from quambench.models.config import ModelConfig
from quambench.models.sites import architecture_of
from quambench.observers.base import whole_number

EVERY = 4  # the first of so many sequences validates
HEAD = "lm_head:input"
# Grid of a log scale, after each step: 0.02 % of the scale, a twentieth of the last step's rate. What two machines
# differ by (a gradient by 4e-11 of itself at most, measured, so a step by 6e-12) vanishes before it can grow,
# unless it lies across the middle between two grid points: a chance of one in 400 for a thousand scales in a
# hundred steps.
GRAIN = 2.0**-12


@dataclass(frozen=True)
class Trained(Refinement):
    """Base of refinements by gradient descent: how long they train, and on what. A subclass gives the loss."""

    steps: float = 32.0
    rate: float = 0.15  # largest change of a log scale in one step; falls to zero linearly
    batch: float = 1.0  # sequences a step
    train: float = 12.0  # sequences to train on, in turn
    validation: float = 6.0  # sequences to judge by
    length: float = 64.0  # tokens of each
    piece: float = 16.0  # tokens between two roundings of the state; without a second piece its scale stays
    every: float = 8.0  # steps between two judgements

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "train", "validation", "piece", "every"):
            whole_number(name, getattr(self, name), 1)
        whole_number("length", self.length, 2)
        check_positive(rate=self.rate)


FakeQuantizer = Callable[[Tensor, Tensor, int], Tensor]
"""(x, a scale that broadcasts to it, bits) -> x as the grid knows it, differentiable in both."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The sequences to train on, and others to judge by."""

    train: Tensor  # (n, L) int64
    validation: Tensor  # (m, L)

    @classmethod
    def of(cls, sequences: Tensor, train: int, validation: int, length: int) -> Self:
        """Divide sequences: every fourth one validates. Each part gets as many as asked or there are, evenly spread.

        sequences  (S, L) int64; the first `length` tokens of each are taken
        raises BadCorpus where nothing would be left for one part
        """
        if len(sequences) < 2 or sequences.shape[1] < 2:
            raise BadCorpus(
                f"training scales needs two sequences of two tokens or more (got {tuple(sequences.shape)}):"
                " one to train on and one to judge by"
            )
        validates = torch.arange(len(sequences)) % EVERY == 0
        return cls(_spread(sequences[~validates, :length], train), _spread(sequences[validates, :length], validation))

    def rows(self, step: int, size: int) -> Tensor:
        """Return (min(size, n)) indices of the training sequences of a step, from 1 on; all have their turn."""
        n = len(self.train)
        return (torch.arange(min(size, n)) + (step - 1) * size) % n


def _spread(sequences: Tensor, count: int) -> Tensor:
    n = min(count, len(sequences))
    return sequences[torch.arange(n) * len(sequences) // n]


def check_symmetric(start: Calibration, name: str) -> None:
    """Check that a calibration has a symmetric grid. raises BadParameter"""
    if not start.symmetric:
        raise BadParameter(f"{name} must start from a symmetric calibration: it has no gradient for zero points")


def check_positive(**values: float) -> None:
    """Check that values are above 0 and finite. raises BadParameter for the first that is not"""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise BadParameter(f"{name} must be above 0 and finite (got {value!r})")


@torch.no_grad()
def taught(prepared: LanguageModel, quantized: QuantizedModel) -> LanguageModel:
    """Return a float64 copy of `prepared` with the values of the INT8 model's integer weights, which rounds no
    activation.

    What the runtime keeps in float32, or half precision, is rounded to that.
    """
    model = copy.deepcopy(prepared).float()
    for block in model.blocks:
        for name in architecture_of(model.config).half:
            parameter = block.mixer.get_parameter(name)
            parameter.copy_(parameter.half())
    parameters = dict(model.named_parameters())
    for name, weight in quantized.weights().items():
        layer, _, own = name.removeprefix("layers.").partition(".")
        if name.startswith("layers."):
            key = f"backbone.layers.{layer}.mixer.{own}"
        else:
            key = name if name.startswith("lm_head") else f"backbone.{name}"
        parameters[key].copy_(weight.dequantize().view_as(parameters[key]))
    return model.double().eval().requires_grad_(False)


def trained_sites(quantized: QuantizedModel) -> list[str]:
    """Return the sites that the INT8 model rounds, in forward order."""
    return [site for site, grid in quantized.grids.items() if isinstance(grid, SymmetricGrid)]


def hard_tap(config: ModelConfig, calibration: Calibration, sites: list[str]) -> Tap:
    """Return a tap that rounds at `sites` as the runtime does, in float64."""
    grids = site_grids(calibration, config, calibration.act_bits, symmetric=True)
    return rounding_at({site: grids[site].double() for site in sites})


class Scales:
    """The scales of some sites, as logarithms to be trained: so they stay positive, whatever the gradient."""

    def __init__(self, start: Calibration, config: ModelConfig, sites: list[str]) -> None:
        self.start, self.config, self.sites = start, config, sites
        self.logs = {site: start.scales[site].double().log().requires_grad_() for site in sites}
        self.settle()
        self._first = {site: log.detach().clone() for site, log in self.logs.items()}

    def tap(self, fake_quantize: FakeQuantizer) -> Tap:
        """Return a tap that rounds at the sites by `fake_quantize`, with a gradient for `logs`."""
        c = self.start
        layouts = {s: layout(c.granularities[s], s, self.config, groups_at(s, c.groups)) for s in self.logs}
        expanded = {s: layouts[s].expand(log.exp()) for s, log in self.logs.items()}

        def tap(site: str, x: Tensor) -> Tensor:
            return fake_quantize(x, expanded[site], c.act_bits) if site in expanded else x

        return tap

    @torch.no_grad()
    def stored(self) -> Calibration:
        """Return the start with each scale that moved replaced, in float32 as an artefact has it."""
        own = {
            site: torch.where(log == self._first[site], self.start.scales[site], log.exp().float().clamp(min=MIN_SCALE))
            for site, log in self.logs.items()
        }
        return replace(self.start, scales={**self.start.scales, **own})

    @torch.no_grad()
    def settle(self) -> None:
        """Move the scales onto the grid, and up to the least scale where they are below it."""
        for log in self.logs.values():
            log.copy_((log / GRAIN).round() * GRAIN).clamp_(min=math.log(MIN_SCALE))


class Adam:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980). Importing torch.optim would take longer than many a training here."""

    BETAS: ClassVar[tuple[float, float]] = (0.9, 0.99)
    EPS: ClassVar[float] = 1e-12  # of the gradient's unit, loss per unit of log scale; far below any that counts

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        self._mean = [torch.zeros_like(p) for p in parameters]
        self._square = [torch.zeros_like(p) for p in parameters]
        self._steps = 0

    @torch.no_grad()
    def step(self, gradients: tuple[Tensor | None, ...], rate: float) -> None:
        """Move each parameter by about `rate`, against its gradient; not at all where that is None or 0."""
        self._steps += 1
        first, second = (1 - beta**self._steps for beta in self.BETAS)
        for p, g, m, v in zip(self.parameters, gradients, self._mean, self._square, strict=True):
            if g is not None:
                m.lerp_(g, 1 - self.BETAS[0])
                v.lerp_(g * g, 1 - self.BETAS[1])
                p.sub_(rate * (m / first) / ((v / second).sqrt() + self.EPS))


@dataclass(frozen=True, slots=True)
class Best:
    """The scales that did best on the validation part."""

    calibration: Calibration
    loss: float  # of these scales, on the validation part
    start_loss: float
    step: int  # 0: the start's own
    steps: int  # done: fewer than asked where the loss stopped being a number


def descend(
    scales: Scales,
    loss: Callable[[int], Tensor],
    judge: Callable[[Calibration], float],
    steps: int,
    rate: float,
    every: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Best:
    """Run Adam from the start, its rate falling linearly to zero; every `every` steps the scales are judged.

    loss   (step, from 1 on) -> the training loss, differentiable in `scales.logs`
    judge  the validation loss, by hard rounding
    """
    first = judge(scales.start)
    best = Best(scales.start, first, first, 0, 0)
    parameters = list(scales.logs.values())
    adam = Adam(parameters)
    for step in range(1, steps + 1):
        with torch.enable_grad():
            value = loss(step)
            if not value.isfinite() or not value.requires_grad:
                break
            gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        adam.step(gradients, rate * (steps - step + 1) / steps)
        scales.settle()
        best = replace(best, steps=step)
        if step % every == 0 or step == steps:
            now = scales.stored()
            if not all(now.scales[site].isfinite().all() for site in scales.sites):
                break
            found = judge(now)
            if found < best.loss:
                best = replace(best, calibration=now, loss=found, step=step)
        progress(step)
    return best


def straight_through(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return q * scale with q = round(clamp(x / scale)); its gradient is LSQ's (Esser et al. 2020, arXiv:1902.08153).

    d/dx = 1 inside the grid and 0 outside; d/dscale = round(x/s) - x/s inside, and outside the end itself.
    Between the ends s * (x/s) has no gradient in s, so the detached remainder leaves just that.
    """
    top = q_max(bits)
    steps = (x / scale).clamp(-top - 1, top)
    return scale * (steps + (steps.round() - steps).detach())


def soft_round(steps: Tensor, temperature: float) -> Tensor:
    """Return floor + h(fraction): Nagel et al. 2020 (arXiv:2004.10568) for activations, so that scales have a gradient.

    h(f) = clamp(1.2 sigmoid((f - 1/2) / temperature) - 0.1, 0, 1), a rectified sigmoid. Where f is
    temperature * ln 11 or more away from 1/2 it is 0 or 1: there, rounding is hard. Up to temperature
    1 / (2 ln 11) = 0.2085 that holds at f = 0, so the function has no jumps.
    """
    whole = steps.detach().floor()
    return whole + (1.2 * torch.sigmoid((steps - whole - 0.5) / temperature) - 0.1).clamp(0, 1)


def soft_quantizer(temperature: float) -> FakeQuantizer:
    """Return a fake quantizer by `soft_round`; unlike that of `straight_through`, its gradient is its own
    derivative.
    """

    def fake_quantize(x: Tensor, scale: Tensor, bits: int) -> Tensor:
        top = q_max(bits)
        return scale * soft_round((x / scale).clamp(-top - 1, top), temperature)

    return fake_quantize
