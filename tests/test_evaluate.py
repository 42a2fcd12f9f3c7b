"""Evaluation: each number against a direct computation on a small random model."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from quambench import evaluate as evaluation
from quambench.case import Protocol
from quambench.data.corpus import Document
from quambench.data.tokenizer import Tokenizer
from quambench.decoding import decode
from quambench.errors import BadCorpus, NonFinite
from quambench.models import ModelConfig, build
from quambench.models.sites import sites_of
from quambench.quant.fuse import prepare
from quambench.quant.quantized import Precision, QuantizedModel

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
    data = evaluation.EvalData.of_prose(documents, tokenizer, PROTOCOL)
    prepared = prepare(model)
    calibration = Fixed(prepared, data.decode.inputs)
    quantized = QuantizedModel(prepared, calibration, Precision())
    return model, prepared, quantized, calibration, data


@pytest.fixture(scope="module")
def measured(setting):
    model, prepared, quantized, calibration, data = setting
    answers, inside = evaluation.float_answers(model, data), evaluation.float_inside(prepared, data)
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
    other = evaluation.evaluate(QuantizedModel(prepared, coarse, Precision()), answers, inside, data, coarse)
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
    verdicts = evaluation.last_word_correct(model, items)
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
    broken = QuantizedModel(prepared, calibration, Precision(lm_head=False))
    broken.lm_head = broken.lm_head * math.nan
    with pytest.raises(NonFinite, match="not finite"):
        evaluation.evaluate(broken, answers, inside, data, calibration)


def test_text_shorter_than_a_window_is_refused(documents):
    tokenizer = Tokenizer.train((d.text for d in documents), 300)
    with pytest.raises(BadCorpus, match="no document is as long as a window"):
        evaluation.EvalData.of_prose([Document.of("short", b"too short")], tokenizer, PROTOCOL)


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
