"""Calibrations from outside: a function of a model and data that returns Quamba's act_scales.

It is named `module:function`, or by an entry point of the group `quambench.calibrations`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from quambench.core.errors import BadParameter
from quambench.core.plugins import Kind
from quambench.grouping import Groups
from quambench.interchange.quamba import HEAD_KEY, ReorderParams, reorder_params_of
from quambench.models.backbone import LanguageModel
from quambench.models.sites import ARCHITECTURES, architecture_of, layer_of, local_name

CALIBRATION = Kind("calibration")
HEAD = -1  # the layer of lm_head's key: act_scales' last entry

Hook = Callable[[int, str, Tensor], None]
"""(layer, key, x) -> None: an activation that Quamba has a scale for, float32 in the shape of its site"""


@dataclass(frozen=True, slots=True)
class FloatModel:
    """The argument of such a function: the float model as it is quantized, its channels in the order of their groups.

    reorder_params  that order, as Quamba has it; None without groups
    """

    architecture: str  # "mamba" or "mamba2"
    n_layers: int
    d_state: int
    n_heads: int  # Mamba2's; 0 in Mamba, as are the next two
    head_dim: int
    n_groups: int
    reorder_params: ReorderParams | None
    _model: LanguageModel = field(repr=False)

    @classmethod
    def of(cls, prepared: LanguageModel, groups: Mapping[int, Groups]) -> FloatModel:
        """Wrap a prepared model whose channels are in the order of `groups`, by layer."""
        c = prepared.config
        heads = (c.n_heads, c.head_dim, c.n_groups) if architecture_of(c).has_heads else (0, 0, 0)
        return cls(c.architecture, c.n_layers, c.d_state, *heads, reorder_params_of(groups), prepared)

    def __call__(self, tokens: Tensor, hook: Hook = lambda layer, key, x: None) -> Tensor:
        """Return logits (B, L, vocabulary) float32 of tokens (B, L) int64; each activation goes to `hook` on the way.

        A tensor that Quamba knows by two keys, its quantizer's and its reader's, comes under both.
        """

        def tap(site: str, x: Tensor) -> Tensor:
            layer, seen = layer_of(site), x.float()
            keys = (HEAD_KEY,) if layer is None else ARCHITECTURES[self.architecture].quamba_keys[local_name(site)]
            for key in keys:
                hook(HEAD if layer is None else layer, key, seen)
            return x

        logits: Tensor = self._model(tokens, tap=tap)[0]
        return logits.float()


def find_calibration(name: str) -> Callable[[FloatModel, list[Tensor]], Any]:
    """Return the function behind a name, which counts as `used` in this process from then on.

    raises UnknownName, BadParameter: each says in one line what is wrong
    """
    function = CALIBRATION.find(name, (), "your own code", "function")
    if not inspect.isroutine(function):
        raise BadParameter(f"{name} must be a function (got {type(function).__name__})")
    try:
        inspect.signature(function).bind(None, None)
    except (TypeError, ValueError):
        raise BadParameter(f"{name} must take two arguments, a model and its calibration sequences") from None
    CALIBRATION.used(name, function)
    return function
