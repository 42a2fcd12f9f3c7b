"""A model against the untouched float checkpoint, on the same tokens -> evidence.

Evidence is per window, item and site, so that two results can be compared pairwise later. The
quantized and the float model take the same calls; what is judged is fixed by `EvalData.digest`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quambench.case import Protocol
from quambench.data.corpus import Document
from quambench.data.tasks import LastWordItems, last_word_items
from quambench.data.tokenizer import Tokenizer
from quambench.data.windows import Windows, spread_windows
from quambench.errors import NonFinite
from quambench.models.backbone import LanguageModel
from quambench.models.sites import sites_of
from quambench.quant.granularity import GRANULARITIES
from quambench.quant.grid import clipped_share, fake_quantize
from quambench.quant.quantized import QuantizedModel, SiteScales

Evidence = Mapping[str, Tensor]
"""Name -> tensor; the names are listed in `evaluate`."""

WINDOW_BATCH = 16
ITEM_BATCH = 64


@dataclass(frozen=True, slots=True)
class EvalData:
    """What every case of a model is judged on."""

    quality: Windows
    decode: Windows  # decode_prefix tokens of prefill, then decode_steps tokens one by one
    decode_prefix: int
    error: Windows
    items: LastWordItems
    quality_bytes: Tensor  # (W,) float64, bytes that each quality window's targets spell

    @classmethod
    def of(cls, documents: Sequence[Document], tokenizer: Tokenizer, protocol: Protocol) -> EvalData:
        """raises BadCorpus when the documents are too short for the protocol's windows"""
        quality = spread_windows(documents, tokenizer, protocol.quality_length, protocol.quality_windows)
        decode_length = protocol.decode_prefix + protocol.decode_steps
        return cls(
            quality=quality,
            decode=spread_windows(documents, tokenizer, decode_length, protocol.decode_windows),
            decode_prefix=protocol.decode_prefix,
            error=spread_windows(documents, tokenizer, protocol.error_length, protocol.error_windows),
            items=last_word_items(documents, tokenizer, protocol.max_items or None),
            quality_bytes=tokenizer.byte_lengths()[quality.targets].sum(1).double(),
        )

    @property
    def digest(self) -> str:
        parts = (self.quality, self.decode, self.error, self.items)
        return hashlib.sha256("".join(p.digest for p in parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Reference:
    """What the float checkpoint says on an EvalData; made once per model and run."""

    quality_log_probs: Tensor  # (W, L, V) float32
    decode_log_probs: Tensor  # (W, steps, V) float32
    correct: Tensor  # (I,) bool
    sites: Mapping[str, Tensor]  # site -> float32 tensor of the prepared model on the error windows
    decode_states: Mapping[str, Tensor]  # "layers.i.ssm_state" -> prepared state after the last step


@torch.inference_mode()
def reference(model: LanguageModel, prepared: LanguageModel, data: EvalData) -> Reference:
    """model: the untouched float32 checkpoint; prepared: its float64 twin of quant/fuse.py.

    The twin gives what lies inside (its sites are the ones that are quantized), the checkpoint
    itself every quality number.
    """
    sites: dict[str, Tensor] = {}
    prepared(data.error.inputs, tap=_recorder(sites))
    states: dict[str, Tensor] = {}
    prepared(data.decode.inputs, tap=_recorder(states, only="ssm_state"))
    quality = [F.log_softmax(model(rows)[0].float(), -1) for rows in data.quality.inputs.split(WINDOW_BATCH)]
    decode = F.log_softmax(model(data.decode.inputs)[0][:, data.decode_prefix :].float(), -1)
    return Reference(torch.cat(quality), decode, last_word_correct(model, data.items), sites, states)


@torch.inference_mode()
def evaluate(
    model: QuantizedModel,
    ref: Reference,
    data: EvalData,
    calibration: SiteScales,
    act_bits: int,
    window_batch: int = WINDOW_BATCH,
) -> dict[str, Tensor]:
    """Everything measured of one quantized model.

    prefill.* and decode.*  nll, nll_float, kl, agree, tokens: sums per window (W,); document (W,);
                            prefill.bytes (W,)
                            kl_p99: (2,) the 99 % quantile over tokens, its standard error
    items.*                 correct, correct_float (I,); document (I,)
    sites.*                 in `sites_of` order, (S,): local_mse, signal (mean square), clipped (share);
                            accumulated (S, windows): error energy over signal energy inside the INT8 model
    decode.state_error      (n_layers, W): the same for the INT8 state after the last step

    raises NonFinite when the model's output is not finite
    """
    evidence: dict[str, Tensor] = {}
    logits = torch.cat([model(rows)[0] for rows in data.quality.inputs.split(window_batch)])
    evidence |= _compare("prefill", logits, ref.quality_log_probs, data.quality)
    evidence["prefill.bytes"] = data.quality_bytes
    logits, states = _decode(model, data)
    evidence |= _compare("decode", logits, ref.decode_log_probs, data.decode, skip=data.decode_prefix)
    evidence["decode.state_error"] = torch.stack(
        [_energy_ratio(states[s], ref.decode_states[s]) for s in ref.decode_states]
    )
    evidence["items.correct"] = last_word_correct(model, data.items).to(torch.uint8)
    evidence["items.correct_float"] = ref.correct.to(torch.uint8)
    evidence["items.document"] = data.items.documents.to(torch.int32)
    evidence |= _local_errors(ref.sites, calibration, act_bits, model)
    inside: dict[str, Tensor] = {}
    model(data.error.inputs, tap=_recorder(inside))
    evidence["sites.accumulated"] = torch.stack(
        # A site that stays float in the INT8 model (lm_head:input, where asked) is never tapped there.
        [_energy_ratio(inside.get(s, ref.sites[s]), ref.sites[s]) for s in sites_of(model.config)]
    )
    return evidence


def _recorder(into: dict[str, Tensor], only: str = "") -> Callable[[str, Tensor], Tensor]:
    def tap(site: str, x: Tensor) -> Tensor:
        if site.endswith(only):
            into[site] = x.float()
        return x

    return tap


def _compare(phase: str, logits: Tensor, float_log_probs: Tensor, windows: Windows, skip: int = 0) -> dict[str, Tensor]:
    """Sums per window of what tells two next-token distributions apart."""
    if not torch.isfinite(logits).all():
        raise NonFinite(f"the quantized model's logits are not finite in {phase}")
    log_probs = F.log_softmax(logits.float(), -1)
    targets = windows.targets[:, skip:, None]
    kl = (float_log_probs.exp() * (float_log_probs - log_probs)).sum(-1).double().clamp(min=0)
    agree = log_probs.argmax(-1) == float_log_probs.argmax(-1)
    sums = {
        "nll": -log_probs.gather(-1, targets)[..., 0].double().sum(-1),
        "nll_float": -float_log_probs.gather(-1, targets)[..., 0].double().sum(-1),
        "kl": kl.sum(-1),
        "agree": agree.double().sum(-1),
        "tokens": torch.full((len(targets),), float(targets.shape[1]), dtype=torch.float64),
        "document": windows.documents.to(torch.int32),
        "kl_p99": _quantile_with_error(kl, windows.documents, 0.99),
    }
    return {f"{phase}.{name}": value for name, value in sums.items()}


def _quantile_with_error(values: Tensor, documents: Tensor, q: float) -> Tensor:
    """(2,): the q-quantile over all tokens, and its delete-one-document jackknife standard error."""
    whole = values.flatten().quantile(q)
    groups = documents.unique()
    if len(groups) < 2:
        return torch.tensor([whole.item(), float("nan")], dtype=torch.float64)
    left_out = torch.stack([values[documents != g].flatten().quantile(q) for g in groups])
    n = len(groups)
    spread = ((left_out - left_out.mean()).square().sum() * (n - 1) / n).sqrt()
    return torch.stack([whole, spread])


def _decode(model: QuantizedModel, data: EvalData) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of the decoded positions (W, steps, V), and the INT8 states after the last step."""
    prefix = data.decode_prefix
    _, state = model.hidden(data.decode.inputs[:, :prefix])
    steps = data.decode.inputs[:, prefix:]
    logits: list[Tensor] = []
    last: dict[str, Tensor] = {}
    for t in range(steps.shape[1]):
        final = t == steps.shape[1] - 1
        out, state = model(steps[:, t : t + 1], state, *((_recorder(last, only="ssm_state"),) if final else ()))
        logits.append(out)
    return torch.cat(logits, dim=1), last


@torch.inference_mode()
def last_word_correct(model: LanguageModel | QuantizedModel, items: LastWordItems) -> Tensor:
    """(I,) bool: greedy decoding spells the whole last word.

    Greedy over the word's tokens is right exactly when each token is the argmax after the true
    ones before it, so one prefill per item tells.
    """
    correct = torch.ones(len(items.inputs), dtype=torch.bool)
    if not len(correct):
        return correct
    lengths = (items.targets >= 0).int().argmax(1) + (items.targets >= 0).sum(1)
    for rows in torch.arange(len(items.inputs)).split(ITEM_BATCH):
        longest = int(lengths[rows].max())
        targets = items.targets[rows, :longest]
        hidden, _ = model.hidden(items.inputs[rows, :longest])
        asked = targets >= 0
        hit = model.head(hidden[asked]).argmax(-1) == targets[asked]
        owner = asked.nonzero()[:, 0]
        correct[rows[owner[~hit]]] = False
    return correct


def _local_errors(
    sites: Mapping[str, Tensor], calibration: SiteScales, act_bits: int, model: QuantizedModel
) -> dict[str, Tensor]:
    """Float input, quantize, dequantize, at each site alone."""
    rows = []
    for site in sites_of(model.config):
        x = sites[site].double()
        scale = GRANULARITIES[calibration.granularities[site]].expand(calibration.scales[site].double(), x)
        error = (fake_quantize(x, scale, act_bits) - x).square().mean()
        rows.append([error.item(), x.square().mean().item(), clipped_share(x, scale, act_bits)])
    columns = torch.tensor(rows, dtype=torch.float64).T.contiguous()
    return {f"sites.{n}": c for n, c in zip(("local_mse", "signal", "clipped"), columns, strict=True)}


def _energy_ratio(x: Tensor, truth: Tensor) -> Tensor:
    """Per window: sum of squared error over sum of squares (0 where both are zero); float64."""
    error = (x.double() - truth.double()).flatten(1).square().sum(1)
    return error / truth.double().flatten(1).square().sum(1).clamp(min=torch.finfo(torch.float64).tiny)
