"""Probes of sampling, evaluation and metrics: answers that are the same everywhere, and every fault named."""

from __future__ import annotations

import re
from contextlib import ExitStack

import pytest
import torch

from quambench.case import Case
from quambench.evaluation import evidence as evaluation
from quambench.evaluation import reference
from quambench.gate import probes
from quambench.gate.probes import MEASURING, all_probes, check, sampling
from quambench.gate.probes import evaluation as asking
from quambench.gate.probes import metrics as measuring
from quambench.metrics import METRICS, Measurement, Metric
from quambench.metrics.base import add_mean
from quambench.selftest.faults import FAULTS
from quambench.selftest.selftest import OBSERVER

PROBES = {probe.name: probe for probe in all_probes()}

NAMES = [p.name for p in all_probes() if p.name.split("/")[0] in MEASURING]
PLANTED = [f for f in FAULTS if f.unit.startswith(MEASURING)]


def changed(names=NAMES):
    return [r for r in check(only=set(names)) if r.status != "same"]


def unit(name):
    return re.split(r"\W", name)[0]


@pytest.mark.parametrize("fault", PLANTED, ids=lambda f: f.name)
def test_the_unit_at_fault_is_named_first(fault):
    """Of its own kind: that nothing before these changes, the next test says of all at once."""
    with fault.plant():
        broken = changed([name for name in NAMES if unit(name) == unit(fault.unit)])
    assert broken, "no probe sees it"
    assert {r.status for r in broken} == {"changed"}
    assert re.match(fault.unit, broken[0].name), broken[0]
    assert "\n" not in broken[0].reason


@pytest.mark.parametrize("kind", MEASURING)
def test_together_they_leave_what_is_asked_before_them_alone_and_go_away_again(kind):
    case, order = Case.parse("m", OBSERVER), [p.name for p in all_probes()]
    first = next(i for i, name in enumerate(order) if unit(name) == kind)
    before = [name for name in order[:first] if PROBES[name].rests("mamba2", case)]
    with ExitStack() as stack:
        for fault in PLANTED:
            if unit(fault.unit) == kind:
                stack.enter_context(fault.plant())
        assert changed(before) == []
        assert changed([name for name in NAMES if unit(name) == kind])
    assert changed() == []


@pytest.mark.parametrize("architecture", ["mamba", "mamba2"])
@pytest.mark.parametrize("text", ["percentile", "mse/w4a8", "running_max/channel"])
def test_every_case_rests_on_what_it_is_measured_by(architecture, text):
    references = {f"evaluation/reference/{kind}" for kind in ("mamba", "mamba2")}
    left_out = {name for name in NAMES if not PROBES[name].rests(architecture, Case.parse("m", text))}
    assert left_out == references - {f"evaluation/reference/{architecture}"} | {"evaluation/sites/asymmetric"}


# --- the same on every machine ----------------------------------------------------------------------


def test_rounding_as_another_machine_has_it_changes_no_answer(monkeypatch):
    """float64 logarithms and sums a few last bits off: a float32 answer moves by one ulp at most."""
    generator = torch.Generator().manual_seed(0)

    def off(x):
        noise = 2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1
        return x * (1 + 8 * torch.finfo(torch.float64).eps * noise)

    log_probs, kl, ratio = reference._log_probs, evaluation._kl, evaluation._energy_ratio
    monkeypatch.setattr(reference, "_log_probs", lambda logits: off(log_probs(logits)))
    monkeypatch.setattr(evaluation, "_kl", lambda *args: off(kl(*args)))
    monkeypatch.setattr(evaluation, "_energy_ratio", lambda *args: off(ratio(*args)))
    assert changed() == []


def test_rounding_as_of_float32_is_seen_by_that_test(monkeypatch):
    monkeypatch.setattr(evaluation, "_kl", lambda *args, kl=evaluation._kl: kl(*args) * (1 + 2.0**-21))
    seen = [r.name.removeprefix("evaluation/") for r in changed()]
    assert seen == ["kl", "quantiles", "decode_gap", "second_look"]


def test_no_number_of_the_tables_hangs_on_a_rounding():
    exact = asking.float_table().double()
    in_1024ths = (exact - exact.exp().sum(-1, keepdim=True).log()) * 1024
    # A float64 logarithm is off by some 1e-15 of up to 8, which is 1e-11 of these units.
    assert (in_1024ths - in_1024ths.round()).abs().min() > 1e-6


def test_every_row_has_one_largest_logit():
    for table in (asking.float_table(), asking.int8_table()):
        first, second = table.topk(2, dim=-1).values.unbind(-1)
        assert (first > second).all()


def test_divergences_are_told_where_they_are_large_against_their_terms():
    """What a float64 sum is off by stays below 2^-24 of it."""
    found = asking.evidence()
    told = [found[f"{phase}.{kl}"] for phase in ("prefill", "decode") for kl in ("kl", "kl_quantiles", "kl_left_out")]
    told += [found["decode.kl_prefill"], found["decode.kl_by_step"]]
    assert min(x.min().item() for x in told) > 2**-9  # terms are at most 1 nat each


# --- what the questions hold ------------------------------------------------------------------------


def test_a_token_whose_divergence_would_be_negative_is_asked():
    same = asking.float_log_probs()[::5]
    assert (same.double().exp() * (same - reference._log_probs(same))).sum(-1).max() < 0


def test_items_are_right_and_wrong_at_every_token():
    right = reference.last_word_correct(asking.models()[1], asking.data().items)
    lengths = (asking.data().items.targets >= 0).sum(1)
    for n in (1, 2, 3):
        assert {bool(x) for x in right[lengths == n]} == {True, False}


def test_documents_are_no_range_and_some_own_several_windows():
    for windows in (asking.data().quality, asking.data().decode):
        labels = windows.documents.tolist()
        assert len(set(labels)) < len(labels)
        assert sorted(set(labels)) != list(range(len(set(labels))))
        assert labels != sorted(labels)


def test_prefill_and_decoding_come_in_several_batches_the_last_one_short():
    assert len(asking.data().quality.inputs) > reference.WINDOW_BATCH
    assert len(asking.data().quality.inputs) % asking.BATCH
    assert len(asking.data().items.inputs) > reference.ITEM_BATCH


def test_the_made_evidence_has_every_array_that_evaluation_makes():
    of_tasks = {"recall.one.": "recall.associative.", "recall.two.": "recall.induction."}
    made = measuring.evidence()
    for name in asking.evidence():
        for here, there in of_tasks.items():
            name = name.replace(here, there)
        assert name in made


def test_the_written_corpus_gives_items_choices_and_letters_of_several_bytes():
    probe = {p.name: p for p in sampling.probes()}
    assert len(probe["sampling/choices"].ask({})["cloze"]) > 0
    assert len(probe["sampling/choices"].ask({})["continuations"]) > 0
    assert len(probe["sampling/items"].ask({})["all, documents"]) > 5
    text = " ".join(sampling.SENTENCES)
    assert len(text.encode()) > len(text)
    assert sampling.text_tokenizer().decode(sampling.text_tokenizer().encode(text)) == text


# --- metrics that come and go -----------------------------------------------------------------------


@pytest.fixture
def extra(monkeypatch):
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))


def test_a_metric_from_outside_is_asked_too_and_is_new(extra):
    add_mean("outside", "nats", "lower", METRICS["kl"].terms)
    assert [(r.name, r.status) for r in changed([*NAMES, "metrics/outside"])] == [("metrics/outside", "new")]


def test_a_metric_that_asks_for_evidence_of_its_own_breaks_no_case(extra):
    METRICS.add("odd", Metric(name="odd", unit="x", better="lower", version=1,
                              measure=lambda evidence: Measurement(float(evidence["odd.array"]), 0.0)))  # fmt: skip
    (found,) = changed(["metrics/odd"])
    assert found.status == "new"
    assert measuring._asked(METRICS["odd"], measuring.variants())["evidence"] == ["there is no 'odd.array'"]


def test_a_metric_that_went_is_gone(extra):
    del METRICS._entries["kl_p90"]
    assert "metrics/kl_p90" not in {p.name for p in all_probes()}
    stored = probes._read(probes.EXPECTED)
    assert "metrics/kl_p90" in stored


@pytest.mark.parametrize("name", [n for n in METRICS if METRICS[n].terms])
def test_terms_of_the_made_evidence_weigh_clusters_of_several_sizes(name):
    """So that a mean of means, and an error over units in place of clusters, is another number."""
    terms = METRICS[name].terms(measuring.evidence())
    sizes = terms.documents.unique(return_counts=True)[1]
    if name.startswith(("recall_", "state_error")):
        assert len(sizes) == len(terms.documents)  # each sequence is its own
    else:
        assert len(sizes) > 2
        assert sizes.min() < sizes.max()
    assert 0 < terms.standard_error() < float("inf")


def test_evidence_is_nobodys_to_spoil():
    measuring.evidence()["prefill.kl"].zero_()
    assert (measuring.evidence()["prefill.kl"] > 0).all()
