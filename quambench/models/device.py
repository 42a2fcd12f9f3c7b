"""A model on another device, called from the host: inputs and tapped tensors are the host's, states stay there.

So whatever feeds a model and looks at it (calibration, evaluation, observers) is written once, for the host.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from quambench.models.backbone import LayerState, Tap, no_tap

M = TypeVar("M")
N = TypeVar("N", bound=nn.Module)


def on_host(model: M, device: torch.device) -> M:
    """Return a stand-in for a model on a device that is called from the host; on the CPU, the model itself."""
    return model if device.type == "cpu" else cast(M, _OnHost(model, device))


class Guest:
    """A device with room for one float model at a time: in float64, one of 2.7 G parameters takes 20 GiB."""

    def __init__(self, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self._there: tuple[nn.Module, nn.Module] | None = None  # a model of the host's, and its copy

    def take(self, model: N) -> N:
        """Return a host's model that is called from the host and computes on the device; the previous one is
        dropped.
        """
        if self.device.type == "cpu":
            return model
        if self._there is None or self._there[0] is not model:
            self.clear()
            self._there = model, _copied(model, self.device)
        return cast(N, on_host(self._there[1], self.device))

    def clear(self) -> None:
        """Drop the model that is on the device, if there is one."""
        self._there = None


def _copied(model: N, device: torch.device) -> N:
    """Return a copy on a device, made tensor by tensor: the host has no room for a second one."""
    there: dict[int, object] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        moved = tensor.detach().to(device)
        there[id(tensor)] = nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved
    return copy.deepcopy(model, there)


class _OnHost:
    """The calls and `head` of a model, with tokens, logits and tapped tensors on the host; the rest is the model's
    own.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        self._model, self.device = model, device

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(
        self, tokens: Tensor, state: list[LayerState] | None = None, tap: Tap = no_tap
    ) -> tuple[Tensor, list[LayerState]]:
        logits, after = self._model(tokens.to(self.device), state, self._tap(tap))
        return logits.cpu(), after

    def hidden(
        self, tokens: Tensor, state: list[LayerState] | None = None, tap: Tap = no_tap
    ) -> tuple[Tensor, list[LayerState]]:
        hidden, after = self._model.hidden(tokens.to(self.device), state, self._tap(tap))
        return hidden.cpu(), after

    def head(self, hidden: Tensor, tap: Tap = no_tap) -> Tensor:
        return cast(Tensor, self._model.head(hidden.to(self.device), self._tap(tap)).cpu())

    def _tap(self, tap: Tap) -> Tap:
        """Return the tap for tensors of the device. A tensor that the tap returns unchanged is not copied back."""
        if tap is no_tap:
            return tap

        def there(site: str, x: Tensor) -> Tensor:
            seen = x.cpu()
            answer = tap(site, seen)
            return x if answer is seen else answer.to(self.device)

        return there
