"""A model against the untouched float checkpoint, on the same tokens -> evidence.

Evidence is per window, item and site, so that two results can be compared pairwise later. The
quantized and the float model take the same calls; what is judged is fixed by `EvalData.digest`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from quambench.core.errors import NonFinite
from quambench.data.windows import (
    Windows,
)
from quambench.evaluation.data import EvalData
from quambench.evaluation.decoding import answers_right, decode, states_along
from quambench.evaluation.reference import (
    WINDOW_BATCH,
    FloatAnswers,
    FloatInside,
    _items_correct,
    _log_probs,
    _recorder,
)
from quambench.int8.model import QuantizedModel
from quambench.int8.site_grid import SiteScales
from quambench.models.backbone import LayerState, no_tap
from quambench.models.sites import sites_of

Evidence = Mapping[str, Tensor]
"""Name -> tensor; the names are listed in `evaluate`, and what each is in quambench/evaluation/fields.py."""
KL_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


@torch.inference_mode()
def evaluate(
    model: QuantizedModel,
    answers: FloatAnswers,
    inside: FloatInside,
    data: EvalData,
    calibration: SiteScales,
    window_batch: int = WINDOW_BATCH,  # windows per forward; another one is other numerics
) -> dict[str, Tensor]:
    """Everything measured of one quantized model.

    prefill.* and decode.*  nll, nll_float, kl, agree, tokens: sums per window (W,); document (W,);
                            prefill.bytes (W,)
                            kl_quantiles: (4, 2) the KL_QUANTILES over tokens, their standard errors
                            kl_left_out: (4, D) the same without each document in turn, in order of `document`
    decode.kl_prefill       (W,) and
    decode.kl_by_step       (steps,): KL of this model's own decoding to its own prefill, summed and by position
    decode.accumulated      (S, W): as sites.accumulated, at the last decoding step
    items.*                 correct, correct_float (I,); document (I,); prose alone
    recall.<task>.*         right, right_float, asked (S,): answers per sequence, decoded; recall alone
    long.state_error        (n_layers, CHECKPOINTS, W): error energy of the INT8 state along a long sequence
    sites.*                 in `sites_of` order, (S,): local_mse, signal (mean square), clipped, range_used (shares);
                            accumulated (S, windows): error energy over signal energy inside the INT8 model
    scales.count, scales.bytes, model.bytes   () each

    raises NonFinite when the model's output is not finite
    """
    found: dict[str, Tensor] = {}
    at_last_step: dict[str, Tensor] = {}
    evidence = evaluate_answers(model, answers, data, window_batch, at_last_step)
    evidence["decode.accumulated"] = _accumulated(model, at_last_step, inside.decode_sites)
    if data.long is not None and inside.long_states is not None:
        evidence["long.state_error"] = _state_errors(model, states_along(model, data.long, step=1), inside.long_states)
    evidence |= _local_errors(inside.sites, model)
    model(data.error.inputs, tap=_recorder(found))
    evidence["sites.accumulated"] = _accumulated(model, found, inside.sites)
    evidence["scales.count"] = torch.tensor(sum(s.numel() for s in calibration.scales.values()))
    evidence["scales.bytes"] = torch.tensor(sum(s.nbytes for s in calibration.scales.values()))
    evidence["model.bytes"] = torch.tensor(model.n_bytes)
    return evidence


@torch.inference_mode()
def evaluate_answers(
    model: QuantizedModel,
    answers: FloatAnswers,
    data: EvalData,
    window_batch: int = WINDOW_BATCH,
    at_last_step: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """What the model answers: of `evaluate`'s arrays prefill.*, decode.*, items.* and recall.*.

    at_last_step  takes up the sites of the last decoding step

    raises NonFinite when the model's output is not finite
    """
    pieces = (model(rows)[0] for rows in data.quality.inputs.split(window_batch))
    evidence = _compare("prefill", pieces, answers.quality_log_probs, data.quality)
    evidence["prefill.bytes"] = data.quality_bytes
    logits = decode(
        model, data.decode.inputs, data.decode_prefix, no_tap if at_last_step is None else _recorder(at_last_step)
    )
    evidence |= _compare(
        "decode", logits.split(window_batch), answers.decode_log_probs, data.decode, skip=data.decode_prefix
    )
    evidence |= _decode_against_prefill(model, logits, data)
    if data.items is not None:
        evidence["items.correct"] = _items_correct(model, data).to(torch.uint8)
        evidence["items.correct_float"] = answers.correct.to(torch.uint8)
        evidence["items.document"] = data.items.documents.to(torch.int32)
    for task, asked in data.recall.items():
        evidence[f"recall.{task}.right"] = answers_right(model, asked, by_steps=True)
        evidence[f"recall.{task}.right_float"] = answers.recall_right[task]
        evidence[f"recall.{task}.asked"] = asked.answers.sum(1).int()
    return evidence


def _accumulated(model: QuantizedModel, found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> Tensor:
    """(S, W) energy ratios. A site that stays float in the INT8 model is never tapped there: no error."""
    return torch.stack([_energy_ratio(found.get(s, truth[s]), truth[s]) for s in sites_of(model.config)])


def _decode_against_prefill(model: QuantizedModel, logits: Tensor, data: EvalData) -> dict[str, Tensor]:
    """What carrying an INT8 state costs, with everything else equal."""
    prefill = model(data.decode.inputs)[0][:, data.decode_prefix :]
    kl = torch.cat([_kl(_log_probs(p), _log_probs(d)) for p, d in zip(prefill.split(1), logits.split(1), strict=True)])
    return {"decode.kl_prefill": kl.sum(-1), "decode.kl_by_step": kl.mean(0)}


def _state_errors(model: QuantizedModel, along: Iterable[Sequence[LayerState]], truth: Tensor) -> Tensor:
    columns = []
    for checkpoint, states in enumerate(along):
        read = [block.read_state(layer.ssm).cpu() for block, layer in zip(model.blocks, states, strict=True)]
        columns.append(torch.stack([_energy_ratio(x, t) for x, t in zip(read, truth[:, checkpoint], strict=True)]))
    return torch.stack(columns, dim=1)


def _kl(truth: Tensor, other: Tensor) -> Tensor:
    """(..., V) log-probabilities, twice -> (...) float64 KL(truth || other), nats, at least 0."""
    truth = truth.double()
    return (truth - other).mul_(truth.exp()).sum(-1).clamp(min=0)


def _compare(
    phase: str, logits: Iterable[Tensor], float_log_probs: Tensor, windows: Windows, skip: int = 0
) -> dict[str, Tensor]:
    """Sums per window of what tells two next-token distributions apart; logits come in pieces of windows."""
    rows: dict[str, list[Tensor]] = {"nll": [], "kl": [], "agree": []}
    # One window at a time: a dozen windows' float64 log-probabilities would leave every cache.
    each = (one for piece in logits for one in piece.split(1))
    for one, truth, targets in zip(each, float_log_probs.split(1), windows.targets[:, skip:].split(1), strict=True):
        if not torch.isfinite(one).all():
            raise NonFinite(f"the quantized model's logits are not finite in {phase}")
        log_probs = _log_probs(one)
        rows["nll"].append(-log_probs.gather(-1, targets[..., None])[..., 0])
        rows["kl"].append(_kl(truth, log_probs))
        rows["agree"].append((one.argmax(-1) == truth.argmax(-1)).double())
    found = {name: torch.cat(parts) for name, parts in rows.items()}  # (W, L) each
    nll_float = -float_log_probs.gather(-1, windows.targets[:, skip:, None])[..., 0].double()
    n_windows, length = nll_float.shape
    sums = {name: per_token.sum(-1) for name, per_token in found.items()} | {
        "nll_float": nll_float.sum(-1),
        "tokens": torch.full((n_windows,), float(length), dtype=torch.float64),
        "document": windows.documents.to(torch.int32),
    }
    sums["kl_quantiles"], sums["kl_left_out"] = _quantiles_with_errors(
        found["kl"], windows.documents, list(KL_QUANTILES.values())
    )
    return {f"{phase}.{name}": value for name, value in sums.items()}


def _quantiles_with_errors(values: Tensor, documents: Tensor, quantiles: Sequence[float]) -> tuple[Tensor, Tensor]:
    """values (W, L) -> (Q, 2): quantiles over all tokens, and their delete-one-document jackknife standard errors;
    (Q, D): the quantiles without each document, of which those errors are made.

    Sorted once: what is left when a document goes is still in order.
    """
    ordered, order = values.flatten().sort()
    owner = documents.repeat_interleave(values.shape[1])[order]
    whole = _quantiles_of_sorted(ordered, quantiles)
    groups = documents.unique()
    n = len(groups)
    if n < 2:
        return torch.stack([whole, torch.full_like(whole, torch.nan)], dim=1), whole[:, None].clone()
    left_out = torch.stack([_quantiles_of_sorted(ordered[owner != g], quantiles) for g in groups], dim=1)
    spread = ((left_out - left_out.mean(1, keepdim=True)).square().sum(1) * (n - 1) / n).sqrt()
    return torch.stack([whole, spread], dim=1), left_out


def _quantiles_of_sorted(ordered: Tensor, quantiles: Sequence[float]) -> Tensor:
    """(n,) -> (Q,), as `Tensor.quantile` interpolates."""
    ranks = torch.tensor(quantiles, dtype=ordered.dtype) * (len(ordered) - 1)
    below = ranks.long()
    return ordered[below].lerp(ordered[ranks.ceil().long()], ranks - below)


def _local_errors(sites: Mapping[str, Tensor], model: QuantizedModel) -> dict[str, Tensor]:
    """Float input, quantize, dequantize, at each site alone."""
    rows = []
    for site in sites_of(model.config):
        x, grid = sites[site].double(), model.calibrated[site].double()
        error = (grid.dequantize(grid.quantize(x)) - x).square().mean()
        position = grid.position(x)
        reached = position.amax().clamp(max=1) - position.amin().clamp(min=-1)
        row = [error, x.square().mean(), grid.clipped(x).double().mean(), position.abs().amax(), 1 - reached / 2]
        rows.append(torch.stack(row))
    names = ("local_mse", "signal", "clipped", "range_used", "range_wasted")
    return {f"sites.{n}": column.contiguous() for n, column in zip(names, torch.stack(rows, dim=1), strict=True)}


def _energy_ratio(x: Tensor, truth: Tensor) -> Tensor:
    """Per window: sum of squared error over sum of squares (0 where both are zero); float64."""
    error = (x.double() - truth.double()).flatten(1).square().sum(1)
    return error / truth.double().flatten(1).square().sum(1).clamp(min=torch.finfo(torch.float64).tiny)
