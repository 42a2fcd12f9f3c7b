"""Evaluation: each number against a direct computation on a small random model."""

from __future__ import annotations

import hashlib
import math
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F

from quambench.case import Protocol
from quambench.core.errors import BadCorpus, NonFinite
from quambench.data.corpus import Document
from quambench.data.recall import VOCAB_SIZE, long_sequences
from quambench.data.recall import sequences as recall_sequences
from quambench.data.tasks import LastWordItems, last_word_items
from quambench.data.tokenizer import Tokenizer
from quambench.data.windows import rest_windows, sequence_windows, spread_windows
from quambench.evaluation import evidence as evaluation
from quambench.evaluation import reference
from quambench.evaluation.data import EvalData
from quambench.evaluation.decoding import CHECKPOINTS, answers_right, decode, states_along
from quambench.gate.arrays import REFERENCE_TOLERANCE
from quambench.grids.precision import Precision
from quambench.int8.fuse import prepare
from quambench.int8.model import quantize_model
from quambench.models import ModelConfig, build
from quambench.models.sites import sites_of

PROTOCOL = Protocol(
    quality_windows=4, quality_length=24, decode_windows=3, decode_prefix=5, decode_steps=6, error_windows=2,
    error_length=16,
)  # fmt: skip


class Fixed:
    """Every site's own maximum over 127: little clips, everything rounds."""

    def __init__(self, prepared, tokens: torch.Tensor) -> None:
        seen: dict[str, torch.Tensor] = {}
        with torch.inference_mode():
            prepared(tokens, tap=lambda site, x: seen.setdefault(site, x))
        self.scales = {site: (seen[site].abs().max() / 127).float() for site in sites_of(prepared.config)}
        self.granularities = dict.fromkeys(self.scales, "tensor")
        self.groups: dict = {}


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    line = "the union of these states is stronger than any one of them and so the union must stand for all states. "
    return [Document.of(f"d{i}", (line * (8 + i)).encode()) for i in range(3)]


@pytest.fixture(scope="module", params=["mamba", "mamba2"])
def setting(request, documents):
    tokenizer = Tokenizer.train((d.text for d in documents), 300)
    shape = {"d_model": 16, "n_layers": 2, "vocab_size": 300, "d_state": 4}
    extra = {"dt_rank": 2} if request.param == "mamba" else {"head_dim": 8, "chunk_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(ModelConfig(architecture=request.param, **shape, **extra)).eval().requires_grad_(False)
    for block in model.blocks:  # a freshly initialised Δ is so small that the state would hardly count
        bias = block.mixer.dt_proj.bias if request.param == "mamba" else block.mixer.dt_bias
        bias.add_(4.0)
    data = EvalData.of_prose(documents, tokenizer, PROTOCOL)
    prepared = prepare(model)
    calibration = Fixed(prepared, data.decode.inputs)
    quantized = quantize_model(prepared, calibration, Precision())
    return model, prepared, quantized, calibration, data


@pytest.fixture(scope="module")
def measured(setting):
    model, prepared, quantized, calibration, data = setting
    answers, inside = reference.float_answers(model, data), reference.float_inside(prepared, data)
    return answers, inside, evaluation.evaluate(quantized, answers, inside, data, calibration)


def test_loss_and_divergence_are_their_definitions(setting, measured):
    model, _, quantized, _, data = setting
    _, _, evidence = measured
    with torch.inference_mode():
        p = F.log_softmax(model(data.quality.inputs)[0].double(), -1)
        q = F.log_softmax(quantized(data.quality.inputs)[0].double(), -1)
    targets = data.quality.targets
    nll = F.nll_loss(q.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets).sum(1)
    kl = F.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    # Both sides are float32 log-softmax sums over at most 300 entries of magnitude < 10, then 24 tokens.
    slack = 24 * 300 * 10 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(evidence["prefill.nll"], nll, atol=slack, rtol=0)
    torch.testing.assert_close(evidence["prefill.kl"], kl.sum(1), atol=slack, rtol=0)
    assert torch.equal(evidence["prefill.agree"], (p.argmax(-1) == q.argmax(-1)).double().sum(1))
    assert evidence["prefill.kl_quantiles"][2, 0].item() == pytest.approx(kl.flatten().quantile(0.99).item(), abs=slack)


def test_the_float_model_against_itself_has_no_divergence(setting, measured):
    *_, data = setting
    answers, inside, _ = measured
    found = evaluation._compare("prefill", answers.quality_log_probs.split(5), answers.quality_log_probs, data.quality)
    # log_softmax of log-probabilities is the identity up to one rounding of each entry.
    assert found["prefill.kl"].max() <= 24 * 300 * torch.finfo(torch.float32).eps
    assert torch.equal(found["prefill.agree"], found["prefill.tokens"])


def test_decoding_reads_the_state_and_prefill_does_not(setting, measured):
    _, prepared, _, calibration, data = setting
    answers, inside, evidence = measured
    coarse = Fixed(prepared, data.decode.inputs)
    coarse.scales = {s: x * 40 if s.endswith("ssm_state") else x for s, x in calibration.scales.items()}
    other = evaluation.evaluate(quantize_model(prepared, coarse, Precision()), answers, inside, data, coarse)
    assert torch.equal(other["prefill.kl"], evidence["prefill.kl"])
    assert not torch.equal(other["decode.kl"], evidence["decode.kl"])
    states = [i for i, site in enumerate(sites_of(prepared.config)) if site.endswith("ssm_state")]
    assert (other["decode.accumulated"][states] > evidence["decode.accumulated"][states]).float().mean() > 0.5


def test_decoding_is_prefill_then_one_token_at_a_time(setting):
    model, _, _, _, data = setting
    with torch.inference_mode():
        whole = model.double()(data.decode.inputs)[0][:, data.decode_prefix :]
        stepped = decode(model, data.decode.inputs, data.decode_prefix)
        model.float()
    # Float64: both sum the same terms in another order, a few hundred at most.
    torch.testing.assert_close(stepped, whole, rtol=1000 * torch.finfo(torch.float64).eps, atol=1e-12)
    assert stepped.shape == whole.shape


def test_last_word_is_right_exactly_when_greedy_decoding_spells_it(setting):
    model, *_, data = setting
    items = data.items
    verdicts = reference.last_word_correct(model, items)
    for i in range(0, len(verdicts), 7):
        places = (items.targets[i] >= 0).nonzero()[:, 0]
        tokens = items.inputs[i, : places[0] + 1].tolist()
        spelled = []
        for _ in places:
            with torch.inference_mode():
                spelled.append(int(model(torch.tensor([tokens]))[0][0, -1].argmax()))
            tokens.append(spelled[-1])
        assert bool(verdicts[i]) == (spelled == items.targets[i, places].tolist())


def test_local_errors_are_round_trips_at_the_site_alone(setting, measured):
    *_, calibration, _ = setting
    answers, inside, evidence = measured
    for i, site in enumerate(calibration.scales):
        x = inside.sites[site]
        scale = float(calibration.scales[site].double())
        q = (x.double() / scale).round().clamp(-128, 127)
        assert evidence["sites.local_mse"][i].item() == (q * scale - x.double()).square().mean().item()
        rounded = (x.double() / scale).round()
        assert evidence["sites.clipped"][i].item() == (rounded != rounded.clamp(-128, 127)).double().mean().item()


def test_accumulated_errors_stand_in_the_order_of_the_site_table(setting, measured):
    _, _, quantized, _, data = setting
    answers, inside, evidence = measured
    found: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        quantized(data.error.inputs, tap=lambda site, x: found.setdefault(site, x))
    for i, site in enumerate(sites_of(quantized.config)):
        x, truth = found[site].double().flatten(1), inside.sites[site].double().flatten(1)
        expected = (x - truth).square().sum(1) / truth.square().sum(1)
        assert torch.equal(evidence["sites.accumulated"][i], expected), site


def test_bytes_count_every_byte_of_the_windows(setting, documents):
    *_, data = setting
    assert data.quality_bytes.sum() == data.quality.n_bytes
    assert 0 < data.quality.n_bytes <= sum(len(d.text.encode()) for d in documents)


def test_non_finite_logits_are_an_error(setting, measured):
    _, prepared, _, calibration, data = setting
    answers, inside, _ = measured
    broken = quantize_model(prepared, calibration, Precision(lm_head=False))
    broken.lm_head.mul_(math.nan)
    with pytest.raises(NonFinite, match="not finite"):
        evaluation.evaluate(broken, answers, inside, data, calibration)


def test_text_shorter_than_a_window_is_refused(documents):
    tokenizer = Tokenizer.train((d.text for d in documents), 300)
    with pytest.raises(BadCorpus, match="no document is as long as a window"):
        EvalData.of_prose([Document.of("short", b"too short")], tokenizer, PROTOCOL)


def test_a_quantiles_error_is_the_jackknife():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    # Medians with one row left out: 4.5, 3.5, 2.5; their spread around 3.5, times 2/3, root.
    whole, left_out = evaluation._quantiles_with_errors(values, torch.tensor([0, 1, 2]), [0.5])
    ((value, error),) = whole.tolist()
    assert [value, error] == pytest.approx([3.5, math.sqrt(2 * 2 / 3)])
    assert left_out.tolist() == [pytest.approx([4.5, 3.5, 2.5])]


def test_quantiles_are_torchs_with_each_document_left_out():
    values = torch.rand(6, 37, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    documents, quantiles = torch.tensor([0, 2, 2, 0, 5, 1]), list(evaluation.KL_QUANTILES.values())
    found, without = evaluation._quantiles_with_errors(values, documents, quantiles)
    q = torch.tensor(quantiles, dtype=torch.float64)
    left_out = torch.stack([values[documents != g].flatten().quantile(q) for g in (0, 1, 2, 5)])
    torch.testing.assert_close(found[:, 0], values.flatten().quantile(q))
    torch.testing.assert_close(found[:, 1], left_out.std(0, correction=0) * 3**0.5)
    torch.testing.assert_close(without, left_out.T)


def test_one_document_has_no_jackknife():
    found, without = evaluation._quantiles_with_errors(torch.rand(2, 5), torch.zeros(2, dtype=torch.int64), [0.5, 0.9])
    assert torch.equal(without[:, 0], found[:, 0])
    assert found[:, 1].isnan().all() and not found[:, 0].isnan().any()


# --- what is judged -------------------------------------------------------------------------------------


def same(a, b) -> bool:
    """Whether two of what an EvalData holds are equal, NaN like NaN."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(-1.0), b.nan_to_num(-1.0))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a.digest == b.digest if hasattr(a, "digest") else a == b


def assert_holds(data: EvalData, **parts) -> None:
    assert {f.name for f in fields(data)} == parts.keys()
    for name, part in parts.items():
        assert same(getattr(data, name), part), name


LARGE = replace(PROTOCOL, quality_windows=7, decode_windows=5, recall_sequences=5)
ONE_ITEM = replace(PROTOCOL, max_items=1)


@pytest.fixture(scope="module")
def tokenizer(documents) -> Tokenizer:
    return Tokenizer.train((d.text for d in documents), 300)


def bytes_of(tokenizer, windows) -> torch.Tensor:
    """Counted in the decoded text."""
    spelled = [len(tokenizer.decode(row).encode()) for row in windows.targets.tolist()]
    return torch.tensor(spelled, dtype=torch.float64)


@pytest.mark.parametrize("protocol", [PROTOCOL, ONE_ITEM], ids=["all items", "one item"])
def test_prose_is_judged_on_the_protocols_windows_and_items(documents, tokenizer, protocol):
    quality = spread_windows(documents, tokenizer, 24, 4)
    items = last_word_items(documents, tokenizer, 1 if protocol is ONE_ITEM else 160)
    assert_holds(
        EvalData.of_prose(documents, tokenizer, protocol),
        quality=quality, decode=spread_windows(documents, tokenizer, 11, 3), decode_prefix=5,
        error=spread_windows(documents, tokenizer, 16, 2), quality_bytes=bytes_of(tokenizer, quality),
        items=items, recall={}, long=None,
    )  # fmt: skip
    assert len(items.inputs) == 1 or protocol is PROTOCOL


def test_no_limit_of_items_takes_all(documents, tokenizer):
    unlimited, all_items = replace(PROTOCOL, max_items=0), last_word_items(documents, tokenizer)
    first = EvalData.of_prose(documents, tokenizer, unlimited)
    assert same(first.items, all_items)
    assert len(all_items.inputs) > 1
    rest = first.rest_of_prose(documents, tokenizer, unlimited, LARGE)
    assert len(rest.items.inputs) == 0


def test_a_second_look_at_prose_has_the_windows_and_items_that_the_first_left_out(documents, tokenizer):
    first = EvalData.of_prose(documents, tokenizer, ONE_ITEM)
    quality, items = rest_windows(documents, tokenizer, 24, 7, 4), last_word_items(documents, tokenizer, 1, rest=True)
    assert_holds(
        first.rest_of_prose(documents, tokenizer, ONE_ITEM, LARGE),
        quality=quality, decode=rest_windows(documents, tokenizer, 11, 5, 3), decode_prefix=5, error=first.error.none,
        quality_bytes=bytes_of(tokenizer, quality), items=items, recall={}, long=None,
    )  # fmt: skip
    assert len(items.inputs) > 1


@pytest.mark.parametrize("part", ["quality_windows", "decode_windows"])
def test_prose_has_no_second_look_where_a_part_of_it_is_empty(documents, tokenizer, part):
    first = EvalData.of_prose(documents, tokenizer, PROTOCOL)
    no_more = replace(LARGE, **{part: getattr(PROTOCOL, part)})
    assert first.rest_of_prose(documents, tokenizer, PROTOCOL, no_more) is None


@pytest.mark.parametrize("part", ["quality_windows", "decode_windows", "error_windows"])
def test_as_many_windows_are_taken_as_there_are(documents, tokenizer, part):
    found = EvalData.of_prose(documents, tokenizer, replace(PROTOCOL, **{part: 100_000}))
    there = len(getattr(found, part.partition("_")[0]).inputs)
    exactly = EvalData.of_prose(documents, tokenizer, replace(PROTOCOL, **{part: there}))
    assert exactly.digest == found.digest


# An integer stands for what is up to half a step away from it, of 127 to the end of the grid.
HALF_A_STEP = 0.5 / 127
RUNGS = {"associative": 4, "induction": 16}
RECALL = replace(PROTOCOL, recall_sequences=3, long_windows=2)


def associative(count: int, seed: int):
    return sequence_windows(recall_sequences("associative", 4, count, "test", seed))


def test_recall_is_judged_on_streams_of_their_own():
    assert_holds(
        EvalData.of_recall(RUNGS, RECALL),
        quality=associative(4, 2), decode=associative(3, 3), decode_prefix=1, error=associative(2, 4),
        quality_bytes=torch.full((4,), torch.nan, dtype=torch.float64), items=None,
        recall={task: recall_sequences(task, rung, 3, "test", 0) for task, rung in RUNGS.items()},
        long=long_sequences(2),
    )  # fmt: skip


def test_a_second_look_at_recall_is_at_streams_that_no_first_look_draws_from():
    first = EvalData.of_recall(RUNGS, RECALL)
    assert_holds(
        first.rest_of_recall(RUNGS, RECALL, LARGE),
        quality=associative(3, 10), decode=associative(2, 11), decode_prefix=1, error=first.error.none,
        quality_bytes=torch.full((3,), torch.nan, dtype=torch.float64), items=None,
        recall={task: recall_sequences(task, rung, 2, "test", 10) for task, rung in RUNGS.items()}, long=None,
    )  # fmt: skip


@pytest.mark.parametrize("part", ["quality_windows", "decode_windows", "recall_sequences"])
def test_recall_has_a_second_look_where_each_part_has_one_more(part):
    first = EvalData.of_recall(RUNGS, RECALL)
    more = {name: getattr(RECALL, name) + 1 for name in ("quality_windows", "decode_windows", "recall_sequences")}
    assert len(first.rest_of_recall(RUNGS, RECALL, replace(RECALL, **more)).quality.inputs) == 1
    assert first.rest_of_recall(RUNGS, RECALL, replace(RECALL, **more | {part: getattr(RECALL, part)})) is None


def test_a_digest_is_of_all_that_is_judged(documents, tokenizer):
    prose, recall = (
        EvalData.of_prose(documents, tokenizer, PROTOCOL),
        EvalData.of_recall(RUNGS, RECALL),
    )
    hashed = hashlib.sha256("".join(getattr(prose, n).digest for n in ("quality", "decode", "error", "items")).encode())
    assert prose.digest == hashed.hexdigest()
    windows = "".join(getattr(recall, n).digest for n in ("quality", "decode", "error"))
    tasks = "".join(recall.recall[task].digest for task in RUNGS)
    hashed = hashlib.sha256(f"{windows}none{tasks}".encode() + recall.long.numpy().tobytes())
    assert recall.digest == hashed.hexdigest()


# --- what is measured -----------------------------------------------------------------------------------

EVERY = {f"{phase}.{name}" for phase in ("prefill", "decode") for name in (
    "nll", "nll_float", "kl", "agree", "tokens", "document", "kl_quantiles", "kl_left_out")} | {
    "prefill.bytes", "decode.kl_prefill", "decode.kl_by_step", "decode.accumulated", "sites.local_mse", "sites.signal",
    "sites.clipped", "sites.range_used", "sites.range_wasted", "sites.accumulated", "scales.count", "scales.bytes",
    "model.bytes"}  # fmt: skip
OF_ITEMS = {"items.correct": torch.uint8, "items.correct_float": torch.uint8, "items.document": torch.int32}


def test_evidence_of_prose_is_all_that_is_promised_and_nothing_else(setting, measured):
    model, _, quantized, calibration, data = setting
    _, _, evidence = measured
    assert evidence.keys() == EVERY | OF_ITEMS.keys()
    assert {name: evidence[name].dtype for name in OF_ITEMS} == OF_ITEMS
    assert torch.equal(evidence["items.correct"].bool(), reference.last_word_correct(quantized, data.items))
    assert torch.equal(evidence["items.correct_float"].bool(), reference.last_word_correct(model, data.items))
    assert evidence["items.document"].tolist() == data.items.documents.tolist()
    for phase, windows in (("prefill", data.quality), ("decode", data.decode)):
        assert evidence[f"{phase}.document"].tolist() == windows.documents.tolist()
        assert evidence[f"{phase}.document"].dtype == torch.int32
        assert evidence[f"{phase}.kl_quantiles"].shape == (4, 2)
        assert evidence[f"{phase}.kl_left_out"].shape == (4, len(windows.documents.unique()))
    assert evidence["prefill.tokens"].tolist() == [24.0] * 4
    assert evidence["decode.tokens"].tolist() == [6.0] * 3
    assert evidence["prefill.tokens"].dtype == torch.float64
    assert torch.equal(evidence["prefill.bytes"], data.quality_bytes)
    assert evidence["scales.count"].item() == len(calibration.scales)
    assert evidence["scales.bytes"].item() == 4 * len(calibration.scales)
    assert evidence["model.bytes"].item() == quantized.n_bytes
    assert (
        evaluation.evaluate_answers(quantized, measured[0], data).keys()
        == {name for name in EVERY if name.startswith(("prefill.", "decode.")) and name != "decode.accumulated"}
        | OF_ITEMS.keys()
    )


def test_quantiles_of_divergence_are_these_four():
    assert evaluation.KL_QUANTILES == {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


def test_the_floats_own_loss_and_decoding_are_their_definitions(setting, measured):
    model, _, quantized, _, data = setting
    _, _, evidence = measured
    with torch.inference_mode():
        for phase, windows, skip in (("prefill", data.quality, 0), ("decode", data.decode, 5)):
            p = F.log_softmax(model(windows.inputs)[0].double(), -1)[:, skip:].float()
            nll = -p.gather(-1, windows.targets[:, skip:, None])[..., 0].double().sum(1)
            torch.testing.assert_close(evidence[f"{phase}.nll_float"], nll, rtol=REFERENCE_TOLERANCE, atol=0)
        stepped = F.log_softmax(decode(quantized, data.decode.inputs, 5).double(), -1)
        whole = F.log_softmax(quantized(data.decode.inputs)[0].double(), -1)[:, 5:]
    kl = F.kl_div(stepped, whole, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(evidence["decode.kl_prefill"], kl.sum(1))
    torch.testing.assert_close(evidence["decode.kl_by_step"], kl.mean(0))
    nll = -stepped.gather(-1, data.decode.targets[:, 5:, None])[..., 0].sum(1)
    torch.testing.assert_close(evidence["decode.nll"], nll)


def test_accumulated_errors_of_decoding_are_those_of_its_last_step(setting, measured):
    _, prepared, quantized, _, data = setting
    found: dict[str, torch.Tensor] = {}
    truth: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        decode(quantized, data.decode.inputs, 5, lambda site, x: found.setdefault(site, x))
        prepared(data.decode.inputs, tap=lambda site, x: truth.setdefault(site, x))
    assert measured[1].decode_sites.keys() == truth.keys()
    for i, site in enumerate(sites_of(quantized.config)):
        exact = truth[site] if site.endswith("ssm_state") else truth[site][:, -1:]
        x, exact = (t.float().double().flatten(1) for t in (found[site], exact))  # kept in float32
        expected = (x - exact).square().sum(1) / exact.square().sum(1)
        assert torch.equal(measured[2]["decode.accumulated"][i], expected), site


def test_each_site_has_its_signal_and_says_how_much_of_its_range_is_used(setting, measured):
    *_, calibration, _ = setting
    _, inside, evidence = measured
    for i, site in enumerate(calibration.scales):
        x = inside.sites[site].double()
        grid = x / (float(calibration.scales[site].double()) * 127)
        assert evidence["sites.signal"][i].item() == x.square().mean().item()
        assert evidence["sites.range_used"][i].item() == pytest.approx(grid.abs().max().item(), abs=HALF_A_STEP)
        reached = min(grid.max().item(), 1) - max(grid.min().item(), -1)
        assert evidence["sites.range_wasted"][i].item() == pytest.approx(1 - reached / 2, abs=HALF_A_STEP)
        assert 0 <= evidence["sites.range_wasted"][i] <= 1


def test_where_there_is_neither_signal_nor_error_the_error_is_none():
    silent, ones = torch.zeros(1, 3, 4), torch.ones(1, 3, 4)
    truth, found = torch.cat([silent, ones, 2 * ones]), torch.cat([silent, 3 * ones, 2 * ones])
    assert evaluation._energy_ratio(found, truth).tolist() == [0, 4, 0]


class Counting:
    """A model that notes how many rows each call has."""

    def __init__(self, model) -> None:
        self.model, self.config, self.rows = model, model.config, []

    def __call__(self, rows, *more):
        self.rows.append(len(rows))
        return self.model(rows, *more)

    def hidden(self, rows):
        self.rows.append(len(rows))
        return self.model.hidden(rows)

    def head(self, hidden):
        return self.model.head(hidden)


def test_windows_go_through_a_model_sixteen_at_a_time_unless_asked_otherwise(setting, documents, tokenizer):
    """Another number is other numerics than those of the results that are stored."""
    model, _, quantized, _, _ = setting
    many = replace(PROTOCOL, quality_length=4, quality_windows=18)
    data = replace(EvalData.of_prose(documents, tokenizer, many), items=None)
    counting = Counting(model)
    answers = reference.float_answers(counting, data)
    assert counting.rows == [16, 2, 3]
    assert (answers.correct.dtype, answers.correct.shape) == (torch.bool, (0,))
    for options, rows in (({}, [16, 2]), ({"window_batch": 7}, [7, 7, 4])):
        counting = Counting(quantized)
        evidence = evaluation.evaluate_answers(counting, answers, data, **options)
        assert counting.rows[: len(rows)] == rows
        assert not any(name.startswith("items.") for name in evidence)


@pytest.fixture(scope="module")
def of_recall():
    """Data of recall with short long sequences, a model, its INT8 twin and what is measured of it."""
    config = ModelConfig(architecture="mamba", d_model=16, n_layers=2, vocab_size=VOCAB_SIZE, d_state=4, dt_rank=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(config).eval().requires_grad_(False)
    data = EvalData.of_recall(RUNGS, RECALL)
    data = replace(data, long=data.long[:, : 3 * CHECKPOINTS])
    prepared = prepare(model)
    calibration = Fixed(prepared, data.decode.inputs)
    quantized = quantize_model(prepared, calibration, Precision())
    answers, inside = reference.float_answers(model, data), reference.float_inside(prepared, data)
    return data, model, prepared, quantized, evaluation.evaluate(quantized, answers, inside, data, calibration)


def test_answers_of_recall_are_counted_for_each_sequence(of_recall):
    data, model, _, quantized, evidence = of_recall
    names = {f"recall.{task}.{name}" for task in RUNGS for name in ("right", "right_float", "asked")}
    assert evidence.keys() == EVERY | names | {"long.state_error"}
    with torch.inference_mode():
        for task, asked in data.recall.items():
            assert torch.equal(evidence[f"recall.{task}.right"], answers_right(quantized, asked, by_steps=True))
            assert torch.equal(evidence[f"recall.{task}.right_float"], answers_right(model, asked, by_steps=False))
            assert evidence[f"recall.{task}.asked"].tolist() == asked.answers.sum(1).tolist()
            assert evidence[f"recall.{task}.asked"].dtype == torch.int32
    assert evidence["prefill.bytes"].isnan().all()


def test_a_state_is_compared_at_equal_distances_along_a_long_sequence(of_recall):
    data, _, prepared, quantized, evidence = of_recall
    assert evidence["long.state_error"].shape == (2, CHECKPOINTS, 2)
    with torch.inference_mode():
        for at, states in enumerate(states_along(quantized, data.long, step=1)):
            _, truth = prepared(data.long[:, : 3 * (at + 1)])
            for layer, block in enumerate(quantized.blocks):
                x, exact = block.read_state(states[layer].ssm).flatten(1).double(), truth[layer].ssm.flatten(1).double()
                expected = (x - exact).square().sum(1) / exact.square().sum(1)
                # Both are float64, whose rounding over a hundred steps stays below 1e-13; float32 would miss 1e-7.
                torch.testing.assert_close(evidence["long.state_error"][layer, at], expected, rtol=1e-7, atol=0)


def test_without_long_sequences_no_state_is_compared(of_recall):
    data, model, prepared, quantized, _ = of_recall
    short = replace(data, long=None)
    answers, inside = reference.float_answers(model, short), reference.float_inside(prepared, short)
    assert inside.long_states is None
    calibration = Fixed(prepared, data.decode.inputs)
    assert "long.state_error" not in evaluation.evaluate(quantized, answers, inside, short, calibration)
    whole = reference.float_inside(prepared, data)
    assert "long.state_error" not in evaluation.evaluate(quantized, answers, whole, short, calibration)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_logits_that_are_not_finite_are_told_with_the_phase(setting, measured, phase):
    *_, data = setting
    spoilt = measured[0].quality_log_probs.clone()
    spoilt[2, 3, 4] = math.inf
    with pytest.raises(NonFinite) as told:
        evaluation._compare(phase, [spoilt], measured[0].quality_log_probs, data.quality)
    assert str(told.value) == f"the quantized model's logits are not finite in {phase}"


def test_a_site_that_stays_float_has_no_error_there(setting, measured):
    _, prepared, _, calibration, data = setting
    quantized = quantize_model(prepared, calibration, Precision(lm_head=False))
    evidence = evaluation.evaluate(quantized, *measured[:2], data, calibration)
    at = list(sites_of(prepared.config)).index("lm_head:input")
    assert not evidence["sites.accumulated"][at].any() and not evidence["decode.accumulated"][at].any()
    assert evidence["sites.accumulated"][:at].any(1).all()


def test_two_documents_have_a_jackknife():
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]], dtype=torch.float64)
    found, without = evaluation._quantiles_with_errors(values, torch.tensor([3, 7]), [0.5])
    assert without.tolist() == [[5, 2]]
    assert found.tolist() == [[3.5, 1.5]]


class Saying:
    """A model of six tokens that says, after each token, what a table says; it notes how many tokens it is given."""

    def __init__(self, *says: int) -> None:
        self.says, self.lengths = torch.tensor(says), []

    def hidden(self, tokens):
        self.lengths.append(tokens.shape[1])
        return F.one_hot(self.says[tokens], 6).float(), None

    def head(self, hidden):
        return hidden


def test_a_last_word_is_right_where_each_of_its_tokens_is_whichever_that_is_and_padding_is_not_read():
    """Token 0 is one like any other."""
    inputs = torch.tensor([[1, 2, 0, 0], [1, 3, 0, 0], [1, 3, 4, 0], [2, 3, 5, 0]])
    targets = torch.tensor([[-1, 0, -1, -1], [-1, 0, -1, -1], [-1, 4, 5, -1], [-1, 4, 0, -1]])
    items = LastWordItems(inputs, targets, torch.arange(4), tuple("abcd"), torch.zeros(4))
    model = Saying(0, 0, 0, 4, 5, 3)  # after 2 comes 0, after 3 comes 4, after 4 comes 5, after 5 comes 3
    assert reference.last_word_correct(model, items).tolist() == [True, False, True, False]
    assert model.lengths == [3]
    for row, right in enumerate((True, False, True, False)):
        one = replace(items, inputs=inputs[row : row + 1], targets=targets[row : row + 1])
        assert reference.last_word_correct(model, one).tolist() == [right]
    assert model.lengths[1:] == [2, 2, 3, 3]
