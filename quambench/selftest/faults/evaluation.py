"""Faults in what is measured: sampling, evaluation, metrics, as they are written in haste.

Each names the probe of its own unit, and the usual case is where it is planted. What a prose model is not asked
for (recall, the state's error), and what a self-test takes over from clean code (the float model's answers, the
data), its probe alone can see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from quambench.data import corpus, recall, tasks, windows
from quambench.data.recall import RecallSequences
from quambench.data.tasks import LastWordItems
from quambench.data.tokenizer import Tokenizer
from quambench.data.windows import Windows
from quambench.evaluation import data as judged_on
from quambench.evaluation import decoding, reference
from quambench.evaluation import evidence as evaluation
from quambench.evaluation.data import EvalData
from quambench.evaluation.reference import FloatAnswers
from quambench.metrics import METRICS, Measurement, Terms
from quambench.metrics import sites as inside
from quambench.metrics.base import Evidence
from quambench.models.backbone import LanguageModel, Tap, no_tap
from quambench.models.sites import sites_of
from quambench.run import runner
from quambench.selftest.faults.base import ONE, OTHER, fault
from quambench.selftest.faults.planting import planted, wrapped

Found = dict[str, Tensor]


def measured(change: Callable[[EvalData, FloatAnswers], tuple[EvalData, FloatAnswers]]) -> AbstractContextManager[Any]:
    """Evaluation looks at other data, or at other answers of the float model."""
    original = evaluation.evaluate

    def spoilt(model: Any, answers: FloatAnswers, within: Any, data: EvalData, *rest: Any, **more: Any) -> Found:
        data, answers = change(data, answers)
        return original(model, answers, within, data, *rest, **more)

    return planted(evaluation, "evaluate", spoilt)


def without(**parts: Any) -> AbstractContextManager[Any]:
    """Parts of the data are not looked at any more."""
    return measured(lambda data, answers: (replace(data, **parts), answers))


def compared(change: Callable[[Found, Windows], Mapping[str, Tensor]]) -> AbstractContextManager[Any]:
    """What a comparison with the float model finds, by names without the phase, is changed."""

    def spoilt(
        original: Callable[..., Found], phase: str, logits: Any, float_log_probs: Tensor, of: Windows, skip: int = 0
    ) -> Found:
        found = original(phase, logits, float_log_probs, of, skip)
        bare = {name.removeprefix(f"{phase}."): x for name, x in found.items()}
        return found | {f"{phase}.{name}": x for name, x in change(bare, of).items()}

    return wrapped(evaluation, "_compare", spoilt)


def agreeing(agree: Callable[[Tensor, Tensor], Tensor]) -> AbstractContextManager[Any]:
    """agree(logits, float log-probabilities), (1, L, V) each -> (1, L): which tokens count as agreed on."""

    def spoilt(original: Any, phase: str, logits: Iterable[Tensor], truth: Tensor, *rest: Any, **more: Any) -> Found:
        pieces = list(logits)
        found = original(phase, pieces, truth, *rest, **more)
        each = zip((one for piece in pieces for one in piece.split(1)), truth.split(1), strict=True)
        return {**found, f"{phase}.agree": torch.cat([agree(x, t).double().sum(-1) for x, t in each])}

    return wrapped(evaluation, "_compare", spoilt)


def decoded(spoilt: Callable[..., Tensor]) -> AbstractContextManager[Any]:
    """spoilt(original, model, tokens, prefix, last_tap)"""
    original = decoding.decode

    def decode(model: Any, tokens: Tensor, prefix: int, last_tap: Tap = no_tap) -> Tensor:
        return spoilt(original, model, tokens, prefix, last_tap)

    return planted(decoding, "decode", decode)


def of_sites(change: Callable[[Found, Mapping[str, Tensor], Any], Mapping[str, Tensor]]) -> AbstractContextManager[Any]:
    """change(what is told of each site alone, the sites, the model)"""

    def spoilt(original: Callable[..., Found], sites: Mapping[str, Tensor], model: Any) -> Found:
        found = original(sites, model)
        return {**found, **change(found, sites, model)}

    return wrapped(evaluation, "_local_errors", spoilt)


def metric(
    name: str,
    measure: Callable[[Evidence], Measurement] | None = None,
    terms: Callable[[Evidence], Terms] | None = None,
) -> AbstractContextManager[Any]:
    """A metric by another formula, of a number or of its terms; it is the mean of those."""

    def mean(evidence: Evidence) -> Measurement:
        assert terms is not None
        found = terms(evidence)
        return Measurement(found.mean(), found.standard_error())

    right = METRICS[name]
    return patch.dict(METRICS._entries, {name: replace(right, measure=measure or mean, terms=terms or right.terms)})


def same_terms(name: str, change: Callable[[Measurement, Terms], Measurement]) -> AbstractContextManager[Any]:
    """A metric that makes another number of what it measured and of its terms."""
    right = METRICS[name]
    assert right.terms is not None
    terms = right.terms
    return metric(name, lambda evidence: change(right.measure(evidence), terms(evidence)))


def standard_error(spoilt: Callable[[Callable[[Terms], float], Terms], float]) -> AbstractContextManager[Any]:
    original = Terms.standard_error
    return planted(Terms, "standard_error", lambda self: spoilt(original, self))


def cut(change: Callable[[Windows], Windows], name: str = "_windows") -> AbstractContextManager[Any]:
    """Windows come out otherwise."""
    return wrapped(windows, name, lambda original, *args, **more: change(original(*args, **more)))


# --- loss, divergence, agreement --------------------------------------------------------------------


@fault("KL of the float model from the quantized one", "evaluation/kl", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return wrapped(evaluation, "_kl", lambda original, truth, other: original(other, truth))


@fault("KL below zero made positive", "evaluation/kl", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def positive(truth: Tensor, other: Tensor) -> Tensor:
        return (truth.double().exp() * (truth.double() - other)).sum(-1).abs()

    return planted(evaluation, "_kl", positive)


@fault("KL in bits", "evaluation/kl", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return wrapped(evaluation, "_kl", lambda original, truth, other: original(truth, other) / math.log(2))


@fault("KL of the likeliest ten words", "evaluation/kl", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def likeliest(truth: Tensor, other: Tensor) -> Tensor:
        top, at = truth.double().topk(10, dim=-1)
        return (top.exp() * (top - other.gather(-1, at))).sum(-1).clamp(min=0)

    return planted(evaluation, "_kl", likeliest)


@fault("log-probabilities in float32", "evaluation", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return planted(reference, "_log_probs", lambda logits: F.log_softmax(logits.float(), -1).double())


@fault("log-probabilities in bfloat16", "evaluation", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return planted(reference, "_log_probs", lambda logits: F.log_softmax(logits.bfloat16(), -1).double())


@fault("the float model's answers in half precision", "evaluation/float", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    original = reference.float_answers

    def coarse(model: Any, data: EvalData) -> FloatAnswers:
        found = original(model, data)
        return replace(found, quality_log_probs=found.quality_log_probs.half().float())

    return planted(reference, "float_answers", coarse)


@fault("the float model in float32", "evaluation/reference", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    original = reference.float_answers

    def coarse(model: Any, data: EvalData) -> FloatAnswers:
        return original(model.float() if isinstance(model, LanguageModel) else model, data)

    return planted(reference, "float_answers", coarse)


@fault("the quantized model stands for the float one", "evaluation/loss", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    original = evaluation.evaluate

    def itself(model: Any, answers: FloatAnswers, within: Any, data: EvalData, *rest: Any, **more: Any) -> Found:
        own = reference.float_answers(model, data)
        return original(model, own, within, data, *rest, **more)

    return planted(evaluation, "evaluate", itself)


@fault("decoding's loss of the tokens before", "evaluation/loss", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    def late(
        original: Callable[..., Found], phase: str, logits: Any, truth: Tensor, of: Windows, skip: int = 0
    ) -> Found:
        shifted = replace(of, targets=of.targets.roll(1, 1)) if skip else of
        return original(phase, logits, truth, shifted, skip)

    return wrapped(evaluation, "_compare", late)


@fault("loss of the likeliest token", "evaluation/loss", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def likeliest(
        original: Callable[..., Found], phase: str, logits: Any, truth: Tensor, of: Windows, skip: int = 0
    ) -> Found:
        best = torch.cat([of.targets[:, :skip], truth.argmax(-1)], dim=1)
        return original(phase, logits, truth, replace(of, targets=best), skip)

    return wrapped(evaluation, "_compare", likeliest)


@fault("agreement with any of the likeliest five", "evaluation/agreement", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return agreeing(lambda x, truth: (x.topk(5, dim=-1).indices == truth.argmax(-1, keepdim=True)).any(-1))


@fault("agreement along the window, not over words", "evaluation/agreement", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return agreeing(lambda x, truth: x.argmax(1) == truth.argmax(1))


@fault("logits that are no numbers made numbers", "evaluation/refused", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    def tame(original: Callable[..., Found], phase: str, logits: Iterable[Tensor], *rest: Any, **more: Any) -> Found:
        return original(phase, (piece.nan_to_num() for piece in logits), *rest, **more)

    return wrapped(evaluation, "_compare", tame)


# --- quantiles --------------------------------------------------------------------------------------


@fault("KL's quantiles by the rank below", "evaluation/quantiles", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def below(ordered: Tensor, quantiles: Any) -> Tensor:
        return ordered[(torch.tensor(quantiles, dtype=ordered.dtype) * (len(ordered) - 1)).long()]

    return planted(evaluation, "_quantiles_of_sorted", below)


@fault("p99 stands for p999", "evaluation/quantiles", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return patch.dict(evaluation.KL_QUANTILES, p999=0.99)


@fault("quantiles of windows' means", "evaluation/quantiles", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def of_means(original: Any, values: Tensor, *rest: Any) -> Any:
        return original(values.mean(1, keepdim=True), *rest)

    return wrapped(evaluation, "_quantiles_with_errors", of_means)


@fault("jackknife without its factor", "evaluation/quantiles", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    def plain(found: Found, of: Windows) -> Mapping[str, Tensor]:
        told = found["kl_quantiles"].clone()
        told[:, 1] /= math.sqrt(max(len(of.documents.unique()) - 1, 1))
        return {"kl_quantiles": told}

    return compared(plain)


# --- what is looked at ------------------------------------------------------------------------------


def _half(data: EvalData, answers: FloatAnswers) -> tuple[EvalData, FloatAnswers]:
    n = (len(data.quality.inputs) + 1) // 2
    kept = data.quality
    kept = replace(kept, inputs=kept.inputs[:n], targets=kept.targets[:n], documents=kept.documents[:n])
    return (
        replace(data, quality=kept, quality_bytes=data.quality_bytes[:n]),
        replace(answers, quality_log_probs=answers.quality_log_probs[:n]),
    )


@fault("half of the windows", "evaluation/windows", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return measured(_half)


@fault("the first windows again in place of the last", "evaluation/loss", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    def again(data: EvalData, answers: FloatAnswers) -> tuple[EvalData, FloatAnswers]:
        n = len(data.quality.inputs)
        at = torch.arange(n) % ((n + 1) // 2)
        twice = replace(data.quality, inputs=data.quality.inputs[at], targets=data.quality.targets[at])
        return replace(data, quality=twice), replace(answers, quality_log_probs=answers.quality_log_probs[at])

    return measured(again)


@fault("accuracy is not measured any more", "evaluation/items", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return without(items=None)


@fault("recall is not measured any more", "evaluation/recall", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return without(recall={})


@fault("the state's error is not measured any more", "evaluation/state", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return without(long=None)


@fault("documents numbered by window", "evaluation/windows", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return compared(lambda found, of: {"document": torch.arange(len(of.documents), dtype=torch.int32)})


@fault("all windows of one document", "evaluation/windows", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return compared(lambda found, of: {"document": torch.zeros_like(found["document"])})


@fault("tokens with the start token", "evaluation/windows", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return compared(lambda found, of: {"tokens": found["tokens"] + 1})


# --- items ------------------------------------------------------------------------------------------


@fault("an item is right by its first token", "evaluation/(float|items)", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def first(original: Callable[..., Tensor], model: Any, items: LastWordItems) -> Tensor:
        later = (items.targets >= 0).cumsum(1) > 1
        return original(model, replace(items, targets=items.targets.masked_fill(later, -1)))

    return wrapped(reference, "last_word_correct", first)


@fault("items told by document, not by length", "evaluation/(float|items)", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    def by_document(original: Callable[..., Tensor], model: Any, items: LastWordItems) -> Tensor:
        return original(model, items)[items.documents.argsort(stable=True)]

    return wrapped(reference, "last_word_correct", by_document)


@fault("right and wrong of quantized and float exchanged", "evaluation/items", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    original = evaluation.evaluate

    def exchanged(*args: Any, **more: Any) -> Found:
        found = original(*args, **more)
        if "items.correct" not in found:
            return found
        return found | {"items.correct": found["items.correct_float"], "items.correct_float": found["items.correct"]}

    return planted(evaluation, "evaluate", exchanged)


# --- decoding, recall, state ------------------------------------------------------------------------


@fault("decoding starts one token early", "evaluation/decoding", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    def early(original: Callable[..., Tensor], model: Any, tokens: Tensor, prefix: int, last_tap: Tap) -> Tensor:
        return original(model, tokens[:, :-1], prefix - 1, last_tap) if prefix > 1 else original(model, tokens, prefix)

    return decoded(early)


@fault("decoding carries no state", "evaluation/decoding", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def forgetful(original: Any, model: Any, tokens: Tensor, prefix: int, last_tap: Tap) -> Tensor:
        original(model, tokens, prefix, last_tap)
        return torch.cat([model(token)[0] for token in tokens[:, prefix:].split(1, dim=1)], dim=1)

    return decoded(forgetful)


@fault("decoding is a prefill", "evaluation/decoding", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    def at_once(original: Any, model: Any, tokens: Tensor, prefix: int, last_tap: Tap) -> Tensor:
        original(model, tokens, prefix, last_tap)
        logits: Tensor = model(tokens)[0]
        return logits[:, prefix:]

    return decoded(at_once)


@fault("recall asked in prefill", "evaluation/decoding", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    original = decoding.answers_right
    return planted(decoding, "answers_right", lambda model, asked, by_steps: original(model, asked, by_steps=False))


@fault("recall's answers one token late", "evaluation/decoding", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    original = decoding.answers_right

    def late(model: Any, asked: RecallSequences, by_steps: bool) -> Tensor:
        return original(model, replace(asked, answers=asked.answers.roll(1, 1)), by_steps)

    return planted(decoding, "answers_right", late)


@fault("the gap of decoding by window, not by step", "evaluation/decode_gap", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def by_window(original: Callable[..., Found], model: Any, logits: Tensor, data: EvalData) -> Found:
        found = original(model, logits, data)
        return found | {"decode.kl_by_step": found["decode.kl_prefill"] / logits.shape[1]}

    return wrapped(evaluation, "_decode_against_prefill", by_window)


@fault("the INT8 state's integers taken for its values", "evaluation/state", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    def unread(model: Any, along: Any, truth: Tensor) -> Tensor:
        return torch.stack(
            [
                torch.stack([evaluation._energy_ratio(x.ssm.cpu(), t) for x, t in zip(s, truth[:, i], strict=True)])
                for i, s in enumerate(along)
            ],
            dim=1,
        )

    return planted(evaluation, "_state_errors", unread)


# --- sites ------------------------------------------------------------------------------------------


@fault("clipped counted by tensor", "evaluation/sites", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return of_sites(lambda found, *_: {"sites.clipped": (found["sites.clipped"] > 0).double()})


@fault("the range used by positive values alone", "evaluation/sites", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    def positive(found: Found, sites: Mapping[str, Tensor], model: Any) -> Mapping[str, Tensor]:
        each = [model.calibrated[s].double().position(sites[s].double()).amax() for s in sites_of(model.config)]
        return {"sites.range_used": torch.stack(each)}

    return of_sites(positive)


@fault("errors inside relative to the quantized signal", "evaluation/(state|accumulated)", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return wrapped(evaluation, "_energy_ratio", lambda original, x, truth: original(truth, x))


@fault("float activations rounded before they are kept", "evaluation/float/inside", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    original = reference._recorder

    def coarse(into: dict[str, Tensor], last_only: bool = False) -> Tap:
        tap = original(into, last_only)

        def rounded(site: str, x: Tensor) -> Tensor:
            tap(site, x.bfloat16())
            return x

        return rounded

    return planted(reference, "_recorder", coarse)


@fault("sites in alphabetical order", "evaluation/(sites|accumulated)", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return wrapped(evaluation, "sites_of", lambda original, config: dict(sorted(original(config).items())))


@fault("scales counted by site", "evaluation/cost", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    original = evaluation.evaluate

    def by_site(model: Any, answers: Any, within: Any, data: Any, calibration: Any, *rest: Any, **more: Any) -> Found:
        found = original(model, answers, within, data, calibration, *rest, **more)
        sizes = [s.element_size() for s in calibration.scales.values()]
        return found | {"scales.bytes": torch.tensor(sum(sizes) + len(sizes))}

    return planted(evaluation, "evaluate", by_site)


# --- metrics ----------------------------------------------------------------------------------------


@fault("standard errors over windows, not documents", "metrics$", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return standard_error(lambda right, t: right(replace(t, documents=torch.arange(len(t.documents)))))


@fault("standard errors shrunk by the root of n", "metrics$", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return standard_error(lambda right, t: right(t) / math.sqrt(max(t.n_clusters, 1)))


@fault("standard errors without C / (C - 1)", "metrics$", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return standard_error(lambda right, t: right(t) * math.sqrt(1 - 1 / max(t.n_clusters, 1)))


@fault("loss averaged over windows, not tokens", "metrics/loss_rise", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    right = METRICS["loss_rise"].terms
    assert right is not None

    def by_window(evidence: Evidence) -> Terms:
        found = right(evidence)
        return replace(found, values=found.values / found.weights, weights=torch.ones_like(found.weights))

    return metric("loss_rise", terms=by_window)


@fault("perplexity as the mean of windows' perplexities", "metrics/perplexity", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def of_windows(found: Measurement, terms: Terms) -> Measurement:
        return replace(found, value=(terms.values / terms.weights).exp().mean().item())

    return same_terms("perplexity", of_windows)


@fault("perplexity's error is the loss's", "metrics/perplexity", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return same_terms("perplexity", lambda found, terms: replace(found, standard_error=terms.standard_error()))


@fault("the float model's perplexity over the quantized one's", "metrics/ppl_ratio", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return same_terms("ppl_ratio", lambda found, terms: replace(found, value=1 / found.value))


@fault("bits per byte in nats", "metrics/bits_per_byte", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return same_terms("bits_per_byte", lambda found, terms: replace(found, value=found.value * math.log(2)))


@fault("flips counted the other way", "metrics/flips_to_wrong", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    other = METRICS["flips_to_right"]
    return metric("flips_to_wrong", other.measure, other.terms)


@fault("a higher loss taken for a better one", "metrics/loss_rise", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return patch.dict(METRICS._entries, loss_rise=replace(METRICS["loss_rise"], better="higher"))


@fault("KL's p99 told as its p90", "metrics/kl_p90", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return metric("kl_p90", METRICS["kl_p99"].measure)


@fault("decibels of amplitudes", "metrics/worst_local_sqnr", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return wrapped(inside, "local_sqnr_db", lambda original, evidence: 2 * original(evidence))


@fault("the worst site is the mean one", "metrics/most_clipped", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return metric("most_clipped", lambda evidence: Measurement(evidence["sites.clipped"].mean().item(), math.nan))


@fault("the state's error where the sequence starts", "metrics/state_error", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    right = METRICS["state_error"].terms
    assert right is not None

    def at_first(evidence: Evidence) -> Terms:
        along = evidence.get("long.state_error")
        return right(evidence if along is None else {**evidence, "long.state_error": along[:, :1]})

    def measure(evidence: Evidence) -> Measurement:
        found = at_first(evidence)
        if not len(found.values):
            return Measurement(math.nan, math.nan)
        return Measurement(found.mean(), found.standard_error())

    return metric("state_error", measure, at_first)


# --- sampling ---------------------------------------------------------------------------------------


@fault("bytes counted as characters", "sampling/tokenizer", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def characters(self: Tokenizer) -> Tensor:
        return torch.tensor([len(self.decode([i])) if i != self.start_id else 0 for i in range(self.vocab_size)])

    return planted(Tokenizer, "byte_lengths", characters)


@fault("windows start with token 0", "sampling/windows", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    def other_start(found: Windows) -> Windows:
        inputs = found.inputs.clone()
        inputs[:, 0] = 0
        return replace(found, inputs=inputs)

    return cut(other_start)


@fault("a window's inputs are its targets", "sampling/windows", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return cut(lambda found: replace(found, inputs=found.targets.clamp(min=0)))


@fault("documents of windows in reverse", "sampling/windows", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return cut(lambda found: replace(found, documents=found.documents.flip(0)))


@fault("a document's last window is dropped", "sampling/windows/full", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def complete(found: Windows) -> Windows:
        at = (found.targets >= 0).all(1)
        return replace(found, inputs=found.inputs[at], targets=found.targets[at], documents=found.documents[at])

    return cut(complete, "full_windows")


@fault("windows from the front of each document", "sampling/windows/spread", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    original = windows.spread_windows

    def from_front(documents: Any, tokenizer: Tokenizer, length: int, count: int) -> Windows:
        found, every = (original(documents, tokenizer, length, n) for n in (count, 10**6))
        at = torch.cat([
            (every.documents == d).nonzero()[: int((found.documents == d).sum()), 0] for d in found.documents.unique()
        ])  # fmt: skip
        return replace(found, inputs=every.inputs[at], targets=every.targets[at], documents=every.documents[at])

    return planted(windows, "spread_windows", from_front)


@fault("calibrated on the text that is judged", "sampling/(corpus|prose)", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    def wrong(original: Any, self: corpus.Corpus, name: str) -> Any:
        return original(self, "test" if name == "calibration" else name)

    return wrapped(corpus.Corpus, "part", wrong)


@fault("calibration's sequences in reverse", "sampling/prose", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    return wrapped(runner.ModelRun, "_make_sequences", lambda original, self: original(self).flip(0))


@fault("items whose last word is new", "sampling/passages", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    return planted(tasks, "passages", tasks.endings)


@fault("the first items, not items spread over all", "sampling/items", architectures=ONE)
def _() -> AbstractContextManager[Any]:
    original = tasks.last_word_items

    def first(documents: Any, tokenizer: Tokenizer, max_items: int | None = None, rest: bool = False) -> LastWordItems:
        found = original(documents, tokenizer, max_items if rest else None, rest)
        n = len(found.inputs) if max_items is None or rest else max_items
        return replace(found, inputs=found.inputs[:n], targets=found.targets[:n], documents=found.documents[:n],
                       chance=found.chance[:n])  # fmt: skip

    return planted(tasks, "last_word_items", first)


@fault("recall tested on what was trained on", "sampling/recall", architectures=OTHER)
def _() -> AbstractContextManager[Any]:
    original = recall.sequences

    def trained(task: str, rung: int, count: int, part: str, seed: int = 0) -> RecallSequences:
        return original(task, rung, count, "train" if part == "test" else part, seed)

    @contextmanager
    def plant() -> Any:
        with ExitStack() as stack:
            stack.enter_context(planted(recall, "sequences", trained))
            stack.enter_context(planted(judged_on, "recall_sequences", trained))
            yield

    return plant()
