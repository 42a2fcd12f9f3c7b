"""Probes of what turns a model's answers into numbers: evaluation and decoding.

The model that is asked looks its answers up: its state is a number that each token changes by a formula,
its logits are a row of a table of small fractions. So nothing here rests on the INT8 path, and what is told
is made in float64 of numbers that are the same everywhere: it differs between machines by some 2^-48 of its
largest term, where a float32 answer may differ by 2^-24 of itself. The smallest divergence of a window is
2^-5 of its largest term, and a quantile's error no smaller. The reference alone is a tiny model's, in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from quambench.case import Case
from quambench.core.errors import NonFinite
from quambench.data.corpus import Corpus
from quambench.data.recall import RecallSequences
from quambench.data.tasks import LastWordItems
from quambench.data.windows import Windows
from quambench.evaluation import decoding, reference
from quambench.evaluation import evidence as evaluation
from quambench.evaluation.data import EvalData
from quambench.evaluation.reference import FloatAnswers
from quambench.gate.probes.base import Answer, Probe, Streams
from quambench.gate.probes.metrics import told
from quambench.gate.probes.models import ARCHITECTURES, CONFIGS, FixedScales, model_of
from quambench.gate.probes.resting import asymmetric, of_kind
from quambench.int8.site_grid import AsymmetricGrid, SymmetricGrid, Unquantized
from quambench.models.backbone import LayerState, Tap, no_tap
from quambench.models.sites import sites_of
from quambench.run import runner

CONFIG = CONFIGS["mamba"]
VOCABULARY, ROWS = 12, 61  # of the table of logits; a state is a row's number
START = VOCABULARY - 1
WINDOWS, LENGTH = 18, 6  # more than one batch of them
PREFIX, STEPS = 3, 4
BATCH = 4  # windows at once, so that the last batch is a short one
FLOAT_SITE = 4  # stays float in the INT8 model, which then never shows it
# Arrays of evidence by the probe that tells them; whatever else there is, "evaluation/names" lists.
ARRAYS = {
    "windows": ("prefill.tokens", "prefill.document", "prefill.bytes", "decode.tokens", "decode.document"),
    "loss": ("prefill.nll", "prefill.nll_float", "decode.nll", "decode.nll_float"),
    "kl": ("prefill.kl", "decode.kl"),
    "agreement": ("prefill.agree", "decode.agree"),
    "quantiles": ("prefill.kl_quantiles", "prefill.kl_left_out", "decode.kl_quantiles", "decode.kl_left_out"),
    "decode_gap": ("decode.kl_prefill", "decode.kl_by_step"),
    "items": ("items.correct", "items.correct_float", "items.document"),
    "recall": tuple(f"recall.{task}.{what}" for task in ("one", "two") for what in ("right", "right_float", "asked")),
    "state": ("long.state_error",),
    "sites": ("sites.local_mse", "sites.signal", "sites.clipped", "sites.range_used", "sites.range_wasted"),
    "accumulated": ("sites.accumulated", "decode.accumulated"),
    "cost": ("scales.count", "scales.bytes", "model.bytes"),
}


def probes() -> Iterator[Probe]:
    """In order of dependence: decoding, the float reference, then what is made of both."""
    yield Probe("evaluation/decoding", lambda _: _decoded())
    yield Probe("evaluation/float", lambda _: _float())
    yield Probe("evaluation/float/inside", lambda _: _inside())
    for kind in ARCHITECTURES:
        yield Probe(f"evaluation/reference/{kind}", lambda s, k=kind: _reference(s, k), rests=of_kind(kind))  # type: ignore[misc]
    for name, arrays in ARRAYS.items():
        yield Probe(f"evaluation/{name}", lambda _, a=arrays: _told(a))  # type: ignore[misc]
    yield Probe(
        "evaluation/sites/asymmetric",
        lambda _: _told(ARRAYS["sites"], LookUp(int8_table(), exact=False, asymmetric=True)),
        rests=asymmetric,
    )
    yield Probe("evaluation/second_look", lambda _: _second_look())
    yield Probe("evaluation/refused", lambda _: _refused())
    yield Probe("evaluation/names", lambda _: _names())


@dataclass(frozen=True)
class LookUp:
    """A model that computes nothing: `table` has its logits, by the state's number.

    exact       the float model: it reads its state as it was stored, and its sites are off by nothing
    asymmetric  some grids have a zero point, as only a case of such a precision has
    """

    table: Tensor  # (ROWS, VOCABULARY)
    exact: bool
    asymmetric: bool = False

    config = CONFIG
    n_bytes = 1234

    def __call__(
        self, tokens: Tensor, state: Sequence[LayerState] | None = None, tap: Tap = no_tap
    ) -> tuple[Tensor, list[LayerState]]:
        hidden, after = self.hidden(tokens, state, tap)
        return self.head(hidden), after

    def hidden(
        self, tokens: Tensor, state: Sequence[LayerState] | None = None, tap: Tap = no_tap
    ) -> tuple[Tensor, list[LayerState]]:
        """tokens (B, L) -> numbers of the states they lead to (B, L, 1)."""
        number = torch.zeros(len(tokens), dtype=torch.int64) if state is None else state[0].conv.flatten().long()
        if state is not None and not self.exact:
            number = (number - 7 * (number % 3 == 1).long()) % ROWS  # what carrying a coarse state does
        numbers = []
        for token in tokens.unbind(1):
            number = (6 * number + 5 * token + 1) % ROWS
            numbers.append(number)
        found = torch.stack(numbers, dim=1)
        if tap is not no_tap:
            for i, site in enumerate(sites_of(CONFIG)):
                if self.exact or i != FLOAT_SITE:
                    tap(site, self._at(i, site, found))
        conv = number.view(-1, 1, 1).float()
        return found[..., None].float(), [LayerState(conv, ssm) for ssm in self._states(number)]

    def head(self, hidden: Tensor) -> Tensor:
        return self.table[hidden[..., 0].long()]

    @property
    def blocks(self) -> list[LookUp]:
        return [self] * CONFIG.n_layers

    def read_state(self, stored: Tensor) -> Tensor:
        """INT8 states are stored in halves."""
        return stored.float() / 2

    @cached_property
    def calibrated(self) -> dict[str, Any]:
        """A grid at each site, of each kind; at steps that divide exactly."""
        half, one, ends = torch.tensor(0.5), torch.tensor(1.0), torch.tensor([0.25, 0.5, 1.0, 2.0])
        third = AsymmetricGrid(half, one * -3, 4) if self.asymmetric else SymmetricGrid(half / 2, 4)
        kinds = (SymmetricGrid(half, 4), SymmetricGrid(one, 8), third, SymmetricGrid(ends, 4), Unquantized())
        states = SymmetricGrid(torch.tensor([[0.5], [1.0]]), 4)
        return {s: states if s.endswith("ssm_state") else kinds[i % 5] for i, s in enumerate(sites_of(CONFIG))}

    def _states(self, number: Tensor) -> tuple[Tensor, ...]:
        """Of each layer, (B, 2, 3): in quarters; as the INT8 model stores it, in halves."""
        layer = torch.arange(CONFIG.n_layers)[:, None, None]
        quarters = (number[:, None] * (layer + 2) + torch.arange(6) * 5) % 13 - 6
        return (quarters / 4 if self.exact else (quarters / 2).round()).view(CONFIG.n_layers, -1, 2, 3).unbind(0)

    def _at(self, site: int, name: str, numbers: Tensor) -> Tensor:
        """A site's values, (B, L, 4), and the state's (B, 2, 3): quarters and a fraction that half precision has no
        bits for. The INT8 model's are off by some 16ths."""
        if name.endswith("ssm_state"):
            value = ((numbers[:, -1:] * 3 + site + torch.arange(6) * 5) % 13 - 6).view(-1, 2, 3) / 4
        else:
            value = (1 + site % 3) * ((numbers[..., None] * (site + 3) + torch.arange(4) * 7) % 19 - 9) / 4
        place = torch.arange(value.numel()).view(value.shape)
        off, value = place * (site + 5) % 7 - 3, value + (place % 3 - 1) / 4096
        return value if self.exact else value + off / 16


@cache
def float_table() -> Tensor:
    """16ths below 6.0625; in no row is a number twice, so that it has one largest."""
    row, token = torch.arange(ROWS)[:, None], torch.arange(VOCABULARY)
    return ((row * 17 + token * 23 + row * token * 7) % 97).float() / 16


@cache
def float_log_probs() -> Tensor:
    """(ROWS, VOCABULARY) float32 1024ths: log-probabilities rounded down, so as to be the same everywhere."""
    exact = float_table().double()
    return ((exact - exact.exp().sum(-1, keepdim=True).log()) * 1024).floor().float() / 1024


@cache
def int8_table() -> Tensor:
    """The float table, each number off by up to 5/8. Every fifth row is the float log-probabilities themselves:
    these add up to less than 1, by which a divergence would be below zero."""
    row, token = torch.arange(ROWS)[:, None], torch.arange(VOCABULARY)
    off = ((row * 5 + token * 3) % 11 - 5) / 8 + token / 1024
    return torch.where(row % 5 == 0, float_log_probs(), float_table() + off)


def models() -> tuple[LookUp, LookUp]:
    """The float model, the INT8 one."""
    return LookUp(float_table(), exact=True), LookUp(int8_table(), exact=False)


@cache
def data(recall: bool = True) -> EvalData:
    """Windows of few documents, whose labels are no range; items of one to three tokens; two recall tasks."""
    text = _chains(WINDOWS + 12, PREFIX + STEPS)
    asked = {"one": _recalled(text[:5], every=2), "two": _recalled(text[7:10], every=3)}
    return EvalData(
        quality=_windows(text[:WINDOWS, :LENGTH], [3, 0, 3, 5, 5, 0, 3, 9, 3] * 2),
        decode=_windows(text[WINDOWS : WINDOWS + 7], [5, 0, 5, 2, 0, 9, 5]),
        decode_prefix=PREFIX,
        error=_windows(text[-3:, :5], [1, 0, 4]),
        quality_bytes=(torch.arange(WINDOWS) * 5 % 7 + 20).double(),
        items=_items(),
        recall=asked if recall else {},
        long=_chains(2, 2 * decoding.CHECKPOINTS + 1) if recall else None,
    )


def answers(of: EvalData) -> FloatAnswers:
    """The float model's, not asked but made: numbers that are exact."""
    log_probs = LookUp(float_log_probs(), exact=True)
    return FloatAnswers(
        quality_log_probs=log_probs(of.quality.inputs)[0],
        decode_log_probs=log_probs(of.decode.inputs)[0][:, PREFIX:],
        correct=torch.arange(len(_items().inputs)) % 3 != 1,
        recall_right={task: (made.answers.sum(1) - torch.arange(len(made.inputs)) % 2).int()
                      for task, made in of.recall.items()},
    )  # fmt: skip


def evidence(model: LookUp | None = None, recall: bool = True) -> dict[str, Tensor]:
    """Everything measured of the INT8 model."""
    exact, int8 = models()
    made = data(recall)
    inside = reference.float_inside(cast(Any, exact), made)
    scales = FixedScales({"one": torch.ones(3), "two": torch.ones(2, 2)}, {})
    return evaluation.evaluate(cast(Any, model or int8), answers(made), inside, made, scales, window_batch=BATCH)


def _windows(targets: Tensor, documents: list[int]) -> Windows:
    inputs = torch.cat([torch.full((len(targets), 1), START), targets[:, :-1]], dim=1)
    return Windows(inputs, targets, torch.tensor(documents), tuple(f"d{i}" for i in range(10)), 99)


def _chains(count: int, length: int) -> Tensor:
    """(count, length) tokens: at times what the float model says, at times what the INT8 one does, mostly others."""
    row, tokens = torch.arange(count), torch.full((count, 1), START)
    for t in range(length):
        said = [m.head(m.hidden(tokens)[0][:, -1]).argmax(-1) for m in models()]
        other = (row * 7 + row // 12 * 5 + t * t * 3) % VOCABULARY
        turn = (row + t) % 4
        token = torch.where(turn == 0, said[0], torch.where(turn == 1, said[1], other))
        tokens = torch.cat([tokens, token[:, None]], dim=1)
    return tokens[:, 1:]


def _recalled(tokens: Tensor, every: int) -> RecallSequences:
    where = (torch.arange(len(tokens))[:, None] + torch.arange(tokens.shape[1])) % every == 0
    where[:, 0] = False
    return RecallSequences(_windows(tokens, [0] * len(tokens)).inputs, tokens, where)


def _items() -> LastWordItems:
    """Twenty, more than one batch: contexts of 2 to 7 tokens, words of 1 to 3 that the INT8 model spells, of which
    some are wrong in their first token, some in their last."""
    _, int8 = models()
    rows = []
    for i in range(20):
        ids = [(i * 5 + 3 * t) % VOCABULARY for t in range(2 + i * 7 % 6)]
        start, n = len(ids), 1 + i % 3
        for t in range(n):
            number = int8.hidden(torch.tensor([[START, *ids]]))[0]
            said = int(int8.head(number)[0, -1].argmax())
            wrong = (i % 4 == 1 and t == 0) or (i % 4 == 3 and t == n - 1)
            ids.append((said + 1) % VOCABULARY if wrong else said)
        rows.append((i, start, ids))
    rows.sort(key=lambda row: len(row[2]))
    longest = len(rows[-1][2])
    inputs, targets = torch.full((20, longest), START), torch.full((20, longest), -1)
    for at, (_, start, ids) in enumerate(rows):
        inputs[at, 1 : len(ids)] = torch.tensor(ids[:-1], dtype=torch.int64)
        targets[at, start : len(ids)] = torch.tensor(ids[start:])
    documents = torch.tensor([[4, 0, 4, 7, 1][i % 5] for i, *_ in rows])
    chance = torch.full((20,), 0.25, dtype=torch.float64)
    return LastWordItems(inputs, targets, documents, tuple(f"d{i}" for i in range(8)), chance)


def _decoded() -> Answer:
    """Which tokens a step sees, which state it is given, what the last step's tap sees; states along a sequence."""
    exact, int8 = models()
    made, seen = data(), []

    def tap(site: str, x: Tensor) -> Tensor:
        seen.append(f"{site} {tuple(x.shape)}")
        return x

    answer: dict[str, Tensor | list[str]] = {}
    for name, model in (("float", cast(Any, exact)), ("INT8", cast(Any, int8))):
        answer[f"{name}, logits"] = told(decoding.decode(model, made.decode.inputs[:3], PREFIX))
        for task, asked in made.recall.items():
            by_way = [decoding.answers_right(model, asked, by_steps) for by_steps in (True, False)]
            answer[f"{name}, answers to {task}"] = torch.cat(by_way)
        assert made.long is not None
        for step in (1, 2, 1000):
            along = decoding.states_along(model, made.long, step)
            answer[f"{name}, states by {step}"] = torch.stack([s.ssm.sum((1, 2)) for layers in along for s in layers])
    decoding.decode(cast(Any, exact), made.decode.inputs[:3], PREFIX, tap)
    return answer | {"the last step's sites": seen}


def _float() -> Answer:
    """Log-probabilities of every fifth window, and of every target."""
    exact, _ = models()
    made = data()
    found = reference.float_answers(cast(Any, exact), made)
    at_targets = found.quality_log_probs.gather(-1, made.quality.targets[..., None])
    bare = reference.float_answers(cast(Any, exact), data(recall=False))
    return {
        "windows": told(found.quality_log_probs[::5]),
        "targets": told(at_targets),
        "decoding": told(found.decode_log_probs[::3]),
        "shapes": torch.tensor([*found.quality_log_probs.shape, *found.decode_log_probs.shape]),
        "dtypes": [str(found.quality_log_probs.dtype), str(found.decode_log_probs.dtype)],
        "correct": found.correct.int(),
        **{f"right, {task}": right for task, right in found.recall_right.items()},
        "tasks without recall": list(bare.recall_right),
    }


def _inside() -> Answer:
    """The sites on the error windows, at the last decoding step, the states along long sequences: of some windows."""
    exact, _ = models()
    found = reference.float_inside(cast(Any, exact), data())
    answer: dict[str, Tensor | list[str]] = {}
    for name, sites in (("prefill", found.sites), ("decode", found.decode_sites)):
        answer[f"{name}, sites"] = [f"{site} {tuple(x.shape)} {x.dtype}" for site, x in sites.items()]
        answer[name] = torch.stack([told(x[0].flatten()[:4]) for x in sites.values()])
    assert found.long_states is not None
    answer["long, shape"] = torch.tensor(found.long_states.shape)
    answer["long"] = told(found.long_states[:, :, 0])
    return answer


def _reference(streams: Streams, kind: str) -> Answer:
    """What a run takes for the truth: the untouched checkpoint, and its prepared twin, both in float64."""
    case, made = Case.parse("probe", "percentile"), data(recall=False)
    checkpoint = SimpleNamespace(
        name="probe", digest="probe", config=CONFIGS[kind], model=model_of(streams, kind), recall={"one": 1}
    )
    known = runner.Known(data={("probe", "", case.protocol): made})
    run = runner.ModelRun(cast(Any, checkpoint), Corpus("probe", {}), [case], known=known)
    answers, inside = run.answers, run.inside(case)
    return {
        "targets": told(answers.quality_log_probs.gather(-1, made.quality.targets[..., None])[::3]),
        "decoding": told(answers.decode_log_probs[::3, :, 0]),
        "correct": answers.correct.int(),
        "sites": torch.stack([told(x[0].flatten()[:4]) for x in inside.sites.values()]),
        "sites, decoding": torch.stack([told(x[0].flatten()[:2]) for x in inside.decode_sites.values()]),
    }


def _told(names: Sequence[str], model: LookUp | None = None) -> Answer:
    """Those of the arrays that there are: one that went, and one that came, is another answer."""
    found = evidence(model, recall=any(name.startswith(("recall.", "long.")) for name in names))
    return {name: told(found[name]) for name in names if name in found}


def _second_look() -> Answer:
    """Every array's sum: a second look asks for answers alone."""
    _, int8 = models()
    made = data()
    found = evaluation.evaluate_answers(cast(Any, int8), answers(made), made, window_batch=BATCH)
    return {name: told(x.double().sum()) for name, x in sorted(found.items())}


def _names() -> Answer:
    """Every array that there is, as it is."""
    return {name: [f"{x.dtype} {tuple(x.shape)}"] for name, x in sorted(evidence().items())}


def _refused() -> Answer:
    """Logits that are not finite, in prefill, and in decoding alone."""
    _, int8 = models()
    prefilled = int8.hidden(data().quality.inputs)[0].unique().long()
    decoded = decoding.decode(cast(Any, Numbers(int8.table, exact=False)), data().decode.inputs, PREFIX).unique().long()
    words = []
    for phase, row in (("prefill", prefilled[2]), ("decode", decoded[~torch.isin(decoded, prefilled)][0])):
        for value in ("nan", "inf", "-inf"):
            spoilt = int8.table.clone()
            spoilt[row, 3] = float(value)
            words.append(f"{value} in {phase}: {_said(LookUp(spoilt, exact=False))}")
    return {"said": words}


class Numbers(LookUp):
    """Tells the numbers of its states in place of logits."""

    def head(self, hidden: Tensor) -> Tensor:
        return hidden


def _said(model: LookUp) -> str:
    try:
        evidence(model, recall=False)
    except NonFinite as error:
        return f"refused{' in prefill' * ('prefill' in str(error))}"
    return "taken"
