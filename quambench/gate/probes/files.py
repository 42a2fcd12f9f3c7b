"""Probes of what is written and read again: calibrations, files for Quamba, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from quambench.calibration.scales import Calibration
from quambench.core.scratch import scratch
from quambench.gate.probes.base import Answer, Probe, Streams, told
from quambench.gate.probes.feeding import checkpoint_of
from quambench.gate.probes.groups import fixed_in_groups
from quambench.gate.probes.models import ARCHITECTURES, CONFIGS, LOGITS, FixedScales, model_of, scales_of
from quambench.gate.probes.resting import all_of, asymmetric, in_groups, of_kind
from quambench.grids.granularity import UNQUANTIZED
from quambench.grids.precision import Precision
from quambench.int8 import fuse
from quambench.int8 import model as quantized
from quambench.int8.site_grid import SymmetricGrid
from quambench.interchange import quamba, quamba_file
from quambench.models import ModelConfig
from quambench.models import checkpoint as checkpoints
from quambench.models import weights as stored_weights
from quambench.run import runner

PIECE = 50  # elements of a weight that are read at a time: most are longer
# As the two layouts spell a model, with what they leave to defaults.
RAW: dict[str, dict[str, Any]] = {
    "state-spaces, defaults": {"d_model": 16, "n_layer": 2, "vocab_size": 13},
    "state-spaces, Mamba2": {
        "d_model": 64, "n_layer": 3, "vocab_size": 16, "norm_epsilon": 1e-3, "tie_embeddings": False,
        "ssm_cfg": {"layer": "Mamba2", "headdim": 8, "ngroups": 2, "bias": True, "conv_bias": False, "D_has_hdim": True,
                    "norm_before_gate": True, "dt_limit": [0.01, "inf"], "chunk_size": 7},
    },
    "transformers, Mamba": {
        "model_type": "mamba", "hidden_size": 24, "num_hidden_layers": 1, "vocab_size": 9, "use_bias": True,
        "use_conv_bias": False, "layer_norm_epsilon": 0.1, "time_step_rank": "auto", "conv_kernel": 3,
    },
    "transformers, Mamba2": {
        "model_type": "mamba2", "hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 9, "head_dim": 8,
        "n_groups": 1, "time_step_limit": [0.1, {"__float__": "Infinity"}], "state_size": 5,
    },
}  # fmt: skip


def probes() -> Iterator[Probe]:
    yield Probe("checkpoint/config", lambda _: {name: [str(ModelConfig.from_json(raw))] for name, raw in RAW.items()})
    for kind in CONFIGS:
        yield Probe(f"checkpoint/{kind}", lambda s, k=kind: _checkpoint(s, k), rests=of_kind(kind))  # type: ignore[misc]
    for kind in ARCHITECTURES:
        yield Probe(f"saved/{kind}", lambda s, k=kind: _saved(s, k), rests=of_kind(kind))  # type: ignore[misc]
        yield Probe(
            f"saved/{kind}/asymmetric",
            lambda s, k=kind: _saved_asymmetric(s, k),  # type: ignore[misc]
            rests=all_of(of_kind(kind), asymmetric),
        )
        yield Probe(
            f"export/{kind}",
            lambda s, k=kind: _exported(s, k, _calibration(scales_of(s, k))),  # type: ignore[misc]
            rests=of_kind(kind),
        )
    yield Probe(
        "saved/mamba2/groups",
        lambda s: _again(_calibration(fixed_in_groups(s, "mamba2"))),
        rests=all_of(of_kind("mamba2"), in_groups),
    )
    yield Probe(
        "export/mamba2/groups",
        lambda s: _exported(s, "mamba2", _calibration(fixed_in_groups(s, "mamba2"))),
        rests=all_of(of_kind("mamba2"), in_groups),
    )


def _calibration(fixed: FixedScales, **changes: Any) -> Calibration:
    """The stored scales, as a calibration would have made them; each site says another observer."""
    observers = {site: f"percentile[alpha={1 - i / 1000:.3f}]" for i, site in enumerate(fixed.scales)}
    granularities = {
        s: "ssd_group" if fixed.groups and s.endswith(("B_conv_out", "C_conv_out")) else g
        for s, g in fixed.granularities.items()
    }
    scales = {s: x.expand(2) * torch.tensor([1, 1.5]) if granularities[s] == "ssd_group" else x
              for s, x in fixed.scales.items()}  # fmt: skip
    made = Calibration(scales, granularities, observers, 8, "", "data", groups=fixed.groups)
    return replace(made, **changes)


def _told(made: Calibration) -> Answer:
    words = [f"{s}: {made.observers[s]} per {made.granularities[s]}" for s in made.scales]
    about = [f"{made.act_bits} bits", "symmetric" if made.symmetric else "asymmetric", made.data_digest]
    order = {f"layer {i}, order": g.channel_index.int() for i, g in made.groups.items()}
    return {"sites": words, "about": about, **made.scales, **order}


def _again(calibration: Calibration) -> Answer:
    """What is read of what was written."""
    with scratch() as folder:
        calibration.save(folder)
        return _told(Calibration.load(folder))


def _saved(streams: Streams, kind: str) -> Answer:
    """Calibrations of 8 and of 4 bits, and one with a site left float; the models that are made of them."""
    usual, low = scales_of(streams, kind), scales_of(streams, kind, 4)
    first = next(iter(low.scales))
    float_site = _calibration(
        usual,
        scales=dict(usual.scales) | {first: torch.zeros(0)},
        granularities=dict(usual.granularities) | {first: UNQUANTIZED},
    )
    return (
        _made_again(streams, kind, "usual", _calibration(usual))
        | _made_again(streams, kind, "4 bits", _calibration(low, act_bits=4))
        | {f"a site left float, {k}": v for k, v in _again(float_site).items()}
    )


def _saved_asymmetric(streams: Streams, kind: str) -> Answer:
    """Return what becomes of a calibration of 4 bits with zero points."""
    low = scales_of(streams, kind, 4)
    shifted = {s: torch.stack([x, -8 * x]) for s, x in low.scales.items()}
    made = _calibration(low, scales=shifted, act_bits=4, symmetric=False)
    return _made_again(streams, kind, "asymmetric", made)


def _made_again(streams: Streams, kind: str, name: str, made: Calibration) -> dict[str, Tensor | list[str]]:
    """Return the calibration as read again, and how many logits differ between its model and one made at once."""
    tokens, eighths = streams["sequences"][:1], SymmetricGrid(LOGITS, 8)
    checkpoint = checkpoint_of(streams, kind)
    _, model = runner.saved_model(checkpoint, replace(made, model_digest=checkpoint.digest))
    precision = Precision(act_bits=made.act_bits, symmetric=made.symmetric)
    same = quantized.quantize_model(fuse.prepare(model_of(streams, kind)), made, precision)
    with torch.inference_mode():
        differ = eighths.quantize(model(tokens)[0]) != eighths.quantize(same(tokens)[0])
    return {f"{name}, {k}": v for k, v in _again(made).items()} | {f"{name}, logits that differ": differ.sum()}


def _exported(streams: Streams, kind: str, calibration: Calibration) -> Answer:
    """The objects that Quamba takes; what is made of them again, and of the file that holds them."""
    checkpoint = checkpoint_of(streams, kind)
    made = replace(calibration, model_digest=checkpoint.digest)
    act_scales, order = quamba.to_act_scales(made)
    answer: dict[str, Tensor | list[str]] = {}
    for i, entry in enumerate(act_scales):
        for key, value in entry.items():
            answer[f"entry {i}, {key}"] = torch.cat([x.flatten().double() for x in _flat(value)]).float()
    for key, values in (order or {}).items():
        answer[key] = torch.cat([x.flatten() for x in values]).int()
    back = quamba.from_act_scales(act_scales, order, checkpoint.config, model_digest="", observer="ours")
    answer |= {f"back, {k}": v for k, v in _told(back).items()}
    with scratch() as folder:
        path = folder / "scales.pt"
        quamba_file.write(path, made, "code")
        return answer | {f"file, {k}": v for k, v in _told(quamba_file.read(path, checkpoint)).items()}


def _flat(value: Any) -> Iterator[Tensor]:
    """Tensors of nested lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    else:
        for part in value:
            yield from _flat(part)


def _checkpoint(streams: Streams, kind: str) -> Answer:
    """A model's weights after saving and loading, in single precision and in half, read in pieces."""
    answer: dict[str, Tensor | list[str]] = {}
    whole = checkpoint_of(streams, kind)
    with scratch() as place, patch.object(stored_weights, "PIECE", PIECE):
        folder = place / "model"
        for dtype in (torch.float32, torch.float16):
            checkpoints.save_checkpoint(folder, whole.model, dtype)
            whole.tokenizer.save(folder / "tokenizer.json")
            found = checkpoints.load_checkpoint(str(folder), dtype=dtype)
            name = str(dtype).removeprefix("torch.")
            answer[f"{name}, config"] = [str(found.config)]
            answer[f"{name}, kinds"] = [f"{n}: {p.dtype}" for n, p in found.model.named_parameters()]
            for n, p in found.model.state_dict().items():
                answer[f"{name}, {n}"] = told((p.double() * 2**10).round())
            logits = found.model.double()(streams["sequences"][:1])[0]
            answer[f"{name}, logits"] = (logits * 1e6).round().int()
    return answer
