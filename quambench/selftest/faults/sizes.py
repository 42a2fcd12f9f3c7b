"""Faults that need a size or a configuration which no bundled model and no case has; and what is fed and written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from quambench_kernels.causal_conv1d import op as float_conv
from quambench_kernels.dispatch import around
from quambench_kernels.ssd import chunked
from torch import Tensor

from quambench.calibration import channels
from quambench.calibration import collect as calibration
from quambench.calibration import hessians as moments
from quambench.calibration.collect import FORWARD_BATCH
from quambench.calibration.scales import Calibration
from quambench.int8 import fuse
from quambench.int8.block import QuantizedBlock
from quambench.int8.mamba import QuantizedMamba
from quambench.int8.mamba2 import QuantizedMamba2
from quambench.interchange import quamba
from quambench.models import checkpoint as checkpoints
from quambench.models.backbone import LanguageModel
from quambench.models.sites import ARCHITECTURES
from quambench.observers import aciq, batch, entropy, histogram, tail
from quambench.observers.base import Observer
from quambench.observers.binned import Binned
from quambench.observers.running_max import RunningMax
from quambench.run import runner
from quambench.selftest.faults.base import ONE, OTHER, fault
from quambench.selftest.faults.planting import as_if, planted, without_gain, wrapped

# Cases of other modules' faults, so that none is recorded for these alone.
MSE, ACIQ, ENTROPY, GPTQ = "mse/w8a4", "aciq/w8a4", "entropy", "percentile/w4a8/gptq"
GROUPED: dict[str, Any] = {"case": "running_max/4x4/quamba2", "architectures": OTHER}

# --- what a vector, a chunk or a batch leaves over --------------------------------------------------------


@fault("inputs that eights leave over are not multiplied", "kernel/int8_linear")
def _() -> AbstractContextManager[Any]:
    def whole(run: Callable[..., Tensor], x: Tensor, w: Tensor) -> Tensor:
        k = x.shape[1] // 8 * 8 if x.shape[1] > 16 else x.shape[1]
        return run(x[:, :k].contiguous(), w[:, :k].contiguous())

    return around("int8_linear", whole)


@fault("channels that eights leave over are not convolved", "kernel/int8_causal_conv1d")
def _() -> AbstractContextManager[Any]:
    def whole(run: Callable[..., Tensor], *args: Any) -> Tensor:
        q = run(*args)
        q[..., q.shape[-1] // 8 * 8 :] = 0
        return q

    return around("int8_causal_conv1d", whole)


@fault("a row's last channels are left out of its norm", "kernel/rms_norm_quantize")
def _() -> AbstractContextManager[Any]:
    def whole(run: Any, x: Tensor, residual: Any, *rest: Any) -> Any:
        x = x.clone()
        x[..., x.shape[-1] // 8 * 8 :] = 0
        return run(x, residual, *rest)

    return around("rms_norm_quantize", whole)


@fault("an odd state's last n is forgotten", "kernel/(int8_)?(selective_scan|ssd)")
def _() -> AbstractContextManager[Any]:
    def even(run: Any, *args: Any) -> Any:
        y, state = run(*args)
        state = state.clone()
        state[..., state.shape[-1] // 2 * 2 :] = 0
        return y, state

    @contextmanager
    def plant() -> Iterator[None]:
        with around("int8_selective_scan", even), around("int8_ssd", even):
            yield

    return plant()


@fault("a chunk that is not full is left out of the state", "kernel/(int8_)?ssd/", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def full(original: Any, x: Tensor, dt: Tensor, *rest: Any) -> Any:
        chunk = rest[-1]
        dt = dt.clone()
        dt[:, x.shape[1] // chunk * chunk :] = 0
        return original(x, dt, *rest)

    return wrapped(chunked, "_of_few", full)


@fault("what blocks leave over is in no tail", "observer/percentile")
def _() -> AbstractContextManager[Any]:
    def whole(original: Callable[..., Tensor], x: Tensor, n: int) -> Tensor:
        block = tail._block_length(x.shape[-1], n)
        return original(x[..., : x.shape[-1] // block * block] if block else x, n)

    return planted(batch, "largest", lambda x, n: whole(tail.largest, x, n))


@fault("a histogram of a batch's first 131072 values", "observer/.*/sizes", case=MSE, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return wrapped(histogram, "_count", lambda original, rows, *more: original(rows[:, : histogram._CHUNK], *more))


@fault("sums of whole chunks alone", "observer/.*/sizes", case=ACIQ, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def whole(original: Callable[..., Tensor], x: Tensor) -> Tensor:
        n = aciq._CHUNK // max(x[0].numel(), 1)
        return original(x[: len(x) // n * n] if len(x) > n > 0 else x)

    return wrapped(aciq, "_sums", whole)


@fault("entropy searched for the first ten scales", "observer/entropy/sizes", case=ENTROPY, architectures=ONE)
def _() -> AbstractContextManager[Any]:
    def ten(original: Callable[..., Tensor], *args: Any) -> Tensor:
        found = original(*args)
        found[10:] = 0
        return found

    return wrapped(entropy, "quantized_entropy", ten)


# --- halves -----------------------------------------------------------------------------------------------


@fault("joined maxima keep the first", "observer/running_max/halves")
def _() -> AbstractContextManager[Any]:
    return planted(RunningMax, "join", lambda self, other: None)


@fault("joined histograms keep the first", "observer/.*/halves", case=MSE, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return planted(Binned, "join", lambda self, other: None)


@fault("what is saved of an observer forgets how many batches", "observer/.*/halves")
def _() -> AbstractContextManager[Any]:
    return wrapped(
        Observer,
        "state_dict",
        lambda original, self: original(self) | {"n_batches": torch.tensor(min(self.n_batches, 1))},
    )


# --- configurations ---------------------------------------------------------------------------------------


@fault("a convolution's bias is taken for granted", "fuse/.*-bare")
def _() -> AbstractContextManager[Any]:
    def with_bias(original: Any, self: Any, splits: Any = ()) -> Any:
        weight, _ = original(self, splits)
        return weight, self.other("conv1d.bias", splits)

    return wrapped(QuantizedBlock, "conv", with_bias)


@fault("every head is taken to be tied", "fuse/.*-bare")
def _() -> AbstractContextManager[Any]:
    original = fuse.fuse_gains

    def tied(model: LanguageModel) -> None:
        model.lm_head.weight.copy_(model.backbone.embedding.weight)
        original(model)

    return planted(fuse, "fuse_gains", tied)


@fault("the usual eps, whatever the model's", "step/.*/parameters")
def _() -> AbstractContextManager[Any]:
    return as_if(norm_eps=1e-5)


@fault("Mamba2's dt_bias in single precision", "step/mamba2.*/parameters", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def single(original: Any, self: Any, config: Any, parts: Any) -> None:
        original(self, config, parts)
        self.dt_bias = parts.source.plain(f"{parts.prefix}dt_bias").q

    return wrapped(QuantizedMamba2, "__init__", single)


@fault("Mamba's dt_bias in half precision", "step/mamba.*/parameters", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    def half(original: Any, self: Any, config: Any, parts: Any) -> None:
        original(self, config, parts)
        self.dt_bias = self.dt_bias.half().float()

    return wrapped(QuantizedMamba, "__init__", half)


@fault("history of a call shorter than the convolution looks back is lost", "kernel/causal_conv1d")
def _() -> AbstractContextManager[Any]:
    def lost(original: Callable[..., Tensor], x: Tensor, history: Tensor) -> Tensor:
        return original(x, history if x.shape[1] in (1, *range(history.shape[1], 10**6)) else torch.zeros_like(history))

    return wrapped(float_conv, "next_history", lost)


# --- what is fed ------------------------------------------------------------------------------------------


def _whole_batches(sequences: Tensor) -> Tensor:
    n = len(sequences)
    return sequences[: n // FORWARD_BATCH * FORWARD_BATCH] if n > FORWARD_BATCH else sequences


@fault("calibration leaves out a forward batch that is not full", "calibration/.*/fed")
def _() -> AbstractContextManager[Any]:
    spoilt = _changed(calibration.calibrate, _whole_batches)
    return planted(calibration, "calibrate", spoilt)


@fault("calibration reads its sequences backwards", "calibration/.*")
def _() -> AbstractContextManager[Any]:
    return planted(runner, "calibrate", _changed(calibration.calibrate, lambda s: s.flip(1)))


@fault("calibration leaves out the start token", "calibration/.*")
def _() -> AbstractContextManager[Any]:
    return planted(runner, "calibrate", _changed(calibration.calibrate, lambda s: s[:, 1:]))


@fault("calibration takes every sequence for the next one", "calibration/.*")
def _() -> AbstractContextManager[Any]:
    return planted(runner, "calibrate", _changed(calibration.calibrate, lambda s: s.roll(1, 0)))


def _changed(original: Any, change: Any) -> Any:
    return lambda model, sequences, *more, **named: original(model, change(sequences), *more, **named)


@fault("second moments of full batches alone", "gptq/fed", "", case=GPTQ, architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    spoilt = _changed(moments.gather_hessians, _whole_batches)
    return planted(moments, "gather_hessians", spoilt)


@fault("statistics of channels of full batches alone", "cluster/statistics/fed", "", **GROUPED)
def _() -> AbstractContextManager[Any]:
    spoilt = _changed(channels.channel_statistics, _whole_batches)
    return planted(channels, "channel_statistics", spoilt)


@fault("gains not fused, in a grouped row", "fuse", "layers.0.*", **GROUPED)
def _() -> AbstractContextManager[Any]:
    return without_gain(lambda model: [block.norm for block in model.blocks])


# --- what is written --------------------------------------------------------------------------------------


@fault("a calibration that is loaded is symmetric", "saved", case="percentile/w8a8-asymmetric", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    right = Calibration.load
    return planted(Calibration, "load", lambda folder: replace(right(folder), symmetric=True))


@fault("a saved model is of eight bits, whatever its calibration", "saved")
def _() -> AbstractContextManager[Any]:
    return wrapped(
        runner,
        "saved_model",
        lambda original, checkpoint, made, *more: original(checkpoint, replace(made, act_bits=8), *more),
    )


@fault("the file for Quamba exchanges B and C", "export/mamba2", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    right = ARCHITECTURES["mamba2"]
    keys = right.quamba_keys
    exchanged = dict(keys) | {"B_conv_out": keys["C_conv_out"], "C_conv_out": keys["B_conv_out"]}
    return patch.dict(ARCHITECTURES._entries, mamba2=replace(right, quamba_keys=exchanged))


@fault("the file for Quamba has heads where channels belong", "export/mamba2/groups", **GROUPED)
def _() -> AbstractContextManager[Any]:
    def turned(original: Any, groups: Any) -> Any:
        found = original(groups)
        return found and found | {"head_index": found["head_index"][::-1]}

    return wrapped(quamba, "reorder_params_of", turned)


@fault("biases of narrow models are narrow", "checkpoint")
def _() -> AbstractContextManager[Any]:
    return planted(checkpoints, "_ALWAYS_FLOAT32", (".A_log", ".D"))
