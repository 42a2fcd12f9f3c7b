"""Cases: ids for people, protocol hashes for machines."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from quambench.calibration.refine import RefinementSpec
from quambench.case import Case, Protocol, asks_tasks, check_fit, is_full, protocol_hash
from quambench.core.errors import BadParameter, UnknownName
from quambench.grids.precision import Precision
from quambench.int8.recipe import WeightRecipe
from quambench.observers import ObserverSpec
from quambench.observers.running_max import RunningMax
from quambench.policy import PolicySpec

CASE = Case(model="mamba2-tiny", observer=ObserverSpec.parse("percentile[alpha=0.9995,sigma=0.01]"))


def test_the_id_reads_as_a_person_would_write_it():
    assert CASE.id == "mamba2-tiny/percentile[alpha=0.9995,sigma=0.01]/1x1"
    other = replace(CASE, precision=Precision(act_bits=4, lm_head=False), policy=PolicySpec("uniform"))
    assert other.id.endswith("/1x1/uniform/w8a4-float_lm_head")


def test_everything_that_changes_a_number_changes_the_hash():
    changes = {
        "model": "x", "observer": ObserverSpec("running_max"), "grouping": "4x4", "policy": PolicySpec("uniform"),
        "precision": Precision(act_bits=4), "protocol": Protocol(calib_windows=1),
        "weights": WeightRecipe(granularity="channel"), "refinement": RefinementSpec("learned"),
    }  # fmt: skip
    made = [replace(CASE, **{k: v}) for k, v in changes.items()]
    made.append(replace(CASE, precision=Precision(symmetric=False)))
    hashes = {protocol_hash(case.settings()) for case in made}
    assert len(hashes | {protocol_hash(CASE.settings())}) == len(made) + 1


def test_two_spellings_of_one_observer_share_a_hash():
    short = replace(CASE, observer=ObserverSpec("percentile"))
    assert protocol_hash(short.settings()) == protocol_hash(CASE.settings())
    full = replace(CASE, observer=ObserverSpec.parse("percentile[clip_ratio=1.0]"))
    assert protocol_hash(full.settings()) == protocol_hash(CASE.settings())


def test_what_came_later_is_told_only_where_it_is_not_usual():
    """A result that was stored before there was a choice must not look as if it had measured something else."""
    later = {"symmetric", "weights", "refinement"}
    assert not later & set(CASE.settings())
    other = Case.parse("m", "percentile/w4a8-asymmetric/gptq")
    assert later & set(other.settings()) == {"symmetric", "weights"}


def test_a_mix_is_told_layer_by_layer_and_nothing_of_it_elsewhere():
    assert not {"layers", "embedding_bits"} & set(Case.parse("m", "mse/w4a16").settings())
    told = Case.parse("m", "mse/mix[w8a8,w4a16*2]").settings()
    assert (told["layers"], told["embedding_bits"], told["weight_bits"], told["act_bits"]) == (
        "w8a8 w4a16 w4a16",
        4,
        4,
        8,
    )
    others = ("mix[w8a8*2,w4a16]", "mix[w8a8,w4a16*2,embedding=w8]", "mix[w8a8,w4a16*2,lm_head=w8a8]")
    made = [told, *(Case.parse("m", f"mse/{text}").settings() for text in others)]
    assert len({protocol_hash(settings) for settings in made}) == len(made)


def test_a_mix_may_be_a_file_somewhere(tmp_path):
    (tmp_path / "mix.json").write_text('["W4A8", "W4A16"]')
    found = Case.parse("m", f"percentile/mix[{tmp_path}/mix.json]/gptq")
    assert found == Case.parse("m", "percentile/mix[w4a8,w4a16]/gptq")
    assert found.id == "m/percentile/1x1/mix[w4a8,w4a16]/gptq"


@pytest.mark.parametrize(
    "text",
    [
        "running_max/1x1",
        "percentile[alpha=0.999]/channel/w8a4",
        "mse/1x1/first_middle_last[first=1.0]/w4a8-float_lm_head-asymmetric/gptq",
        "percentile/1x1/weights=mse[low=0.5]@channel",
        "dynamic_percentile[candidates=0.9|1.0]/head/learned[steps=2.0]",
        "warmup_percentile[schedule=3.0:0.5|inf:0.1]/1x1/weights=group/w4a8",
        "running_max/4x4/quamba2",
        "running_max/16x2[method=dp]/w8a4/learned",
        "mse/adaptive[base=2.0,rule=variance]/gptq/w4a8",
        "percentile/w16a8-float_ssm_state",
        "running_max/4x4/quamba2/mix[w4a8*40,w4a16*24,lm_head=w8a16]-float_embedding/gptq",
    ],
)
def test_an_id_reads_back(text):
    case = Case.parse("m", text)
    assert Case.parse("m", case.id.removeprefix("m/")) == case


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("percentile/gptq", "gptq makes weights of 4 bits: write w4a8 beside it"),
        ("percentile/weights=group/w8a4", "weights=group makes weights of 4 bits: write w4a4 beside it"),
        ("percentile/learned/w8a8-asymmetric", "learned trains symmetric grids alone"),
        ("percentile/sensitivity/w8a8-asymmetric", "sensitivity measures symmetric grids alone"),
        ("percentile/4x4/sensitivity", "sensitivity measures sites without groups"),
        ("percentile/w8a16/gptq", "gptq makes weights of 4 bits: write w4a16 beside it"),
        ("percentile/mix[w8a8,w8a16,lm_head=w8a8]/weights=group", "weights=group makes weights of 4 bits"),
        ("percentile/w8a16/learned", "learned changes nothing in w8a16: leave it out"),
        ("percentile/w4a16/sensitivity", "sensitivity changes nothing in w4a16"),
        ("percentile/w8a16-asymmetric", "asymmetric changes nothing in w8a16-asymmetric"),
        ("percentile/w16a8/weights=mse@channel", "weights=mse@channel changes nothing in w16a8"),
    ],
)
def test_parts_that_do_not_go_together_are_told(text, says):
    with pytest.raises(BadParameter, match=says):
        check_fit(Case.parse("m", text))


def test_the_groupings_defaults_are_written_out_and_what_was_stored_before_keeps_its_name():
    short, long = (Case.parse("m", f"running_max/{g}") for g in ("4x4", "4x4[method=kmeans]"))
    assert short.settings() == long.settings()
    assert short.settings() != Case.parse("m", "running_max/4x4[method=dp]").settings()
    assert Case.parse("m", "running_max/channel").settings()["grouping"] == "channel"
    assert Case.parse("m", "running_max").settings()["grouping"] == "1x1"


@pytest.mark.parametrize(
    ("text", "by"),
    [("mse", None), ("mse/channel", None), ("mse/4x4", "4x4"), ("mse/1x1/quamba2", "1x1"), ("mse/quamba2/head", "head"),
     ("mse/adaptive/uniform", "adaptive")],
)  # fmt: skip
def test_who_groups_heads_and_channels(text, by):
    found = Case.parse("m", text).groups_by
    assert (str(found) if found else None) == by


def test_the_weights_observer_is_written_out():
    short, long = (Case.parse("m", f"mse/weights={o}@channel") for o in ("percentile", "percentile[alpha=0.9995]"))
    assert short.settings() == long.settings()


def test_the_order_of_parts_is_free_and_what_is_usual_may_be_left_out():
    assert Case.parse("m", "mse/gptq/w4a8/channel") == Case.parse("m", "mse/channel/w4a8/gptq")
    assert Case.parse("m", "mse") == Case.parse("m", "mse/1x1/quamba/w8a8")


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("mse/chanel", UnknownName, "no part of a case named 'chanel'. Did you mean 'channel'?"),
        ("mse/w9a8", BadParameter, "a precision is written w8a8"),
        ("mse/w8a8-float_norm", BadParameter, "a precision is written w8a8"),
        ("mse/w16a16", BadParameter, "w16a16 quantizes nothing"),
        ("mse/nowhere.json", BadParameter, "cannot read the mix nowhere.json"),
        ("mse/d/mix.json", BadParameter, "slashes part it: write mix[d/mix.json]"),
        ("mse/channel//no/d/mix.json/gptq", BadParameter, "slashes part it: write mix[/no/d/mix.json]"),
        ("mse/precision=d/mix.json", BadParameter, "slashes part it: write mix[d/mix.json]"),
        ("mse/d/gptq", UnknownName, "no part of a case named 'd'"),
        ("mse/mix[w8a8,w9a8]", BadParameter, "layer 1: 'w9a8' is no precision"),
        ("mse/w4a8/mix[w8a8]", BadParameter, "a case has one precision"),
        ("mse/weights=row", BadParameter, "weights must be per quamba, tensor, split, channel, group (got 'row')"),
        ("mse/weights=nosuch@channel", UnknownName, "no observer named 'nosuch'"),
        ("mse/1x1[method=dp]", BadParameter, "the grouping 1x1 takes no parameters: write 1x1 (got '1x1[method=dp]')"),
        ("mse/04x4", UnknownName, "no part of a case named '04x4'"),
        ("mse/uniform[x=1]", BadParameter, "uniform has no parameter 'x'; it takes none"),
        ("mse/head/channel", BadParameter, "case mse/head/channel: a case has one grouping (got another, channel)"),
        ("mse/w8a4/learned/adaround", BadParameter, "a case has one refinement"),
        ("percentile[alpha=0.9,alpha=1.0]", BadParameter, "percentile[alpha=0.9,alpha=1.0]: alpha is given twice"),
        ("mse[steps=many]", BadParameter, "mse[steps=many]: steps must be a number (got 'many')"),
        (
            "mse/first_middle_last[width=0]/w8a4",
            BadParameter,
            "case mse/first_middle_last[width=0]/w8a4: first_middle_last[width=0]: width must be a whole number",
        ),
        ("percentile[0.999]", BadParameter, "write percentile[alpha=0.999]"),
        ("percentile:0.999", BadParameter, "write percentile[alpha=0.999]"),
        ("mse/4x4[dp]/quamba2", BadParameter, "write 4x4[method=dp]"),
        ("mse/adaptive:8/quamba2", BadParameter, "write adaptive[base=8.0]"),
        ("mse/scale_multiplier:0.5", BadParameter, "write scale_multiplier[factor=0.5]"),
        ("mse/w8a4/learned(40)", BadParameter, "write learned[steps=40.0]"),
        ("mse/gptq[4]", BadParameter, "gptq takes no parameters: write gptq"),
        ("mse/full[3]", BadParameter, "full takes no parameters: write full"),
        ("mse/channel:3", BadParameter, "write channel"),
        (
            "mse/int8",
            BadParameter,
            "case mse/int8: a precision names the bits of weights and of activations: write w8a8",
        ),
        ("mse/w4", BadParameter, "write w4a8 (got 'w4')"),
        ("mse/a6", BadParameter, "write w8a6"),
        ("mse/fp16", BadParameter, "write w8a16 or w16a8"),
        ("mse/weights=percentile", BadParameter, "write weights=percentile@channel"),
        ("mse/weights=percentile[0.99]@channel", BadParameter, "write percentile[alpha=0.99]"),
        ("mse/mix[]", BadParameter, "mix[] needs a precision for each layer"),
        ("mse/tasks=a:0", BadParameter, "N documents of each, 1 or more (got 'tasks=a:0')"),
        ("mse//w8a8", BadParameter, "a part between slashes is empty"),
        ("4x4", BadParameter, "a case starts with its observer: write percentile/4x4"),
        ("w8a4/mse", BadParameter, "write percentile/w8a4"),
    ],
)
def test_a_part_that_is_wrong_is_one_line(text, error, says):
    with pytest.raises(error) as caught:
        Case.parse("m", text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tasks_are_part_of_an_id_and_read_back():
    case = Case.parse("m", "mse/1x1/tasks=b+a+b:20")
    assert case.id == "m/mse/1x1/tasks=a+b:20"
    assert (case.tasks, case.task_limit) == (("a", "b"), 20)
    assert Case.parse("m", case.id.partition("/")[2]) == case
    with pytest.raises(BadParameter, match="tasks are written"):
        Case.parse("m", "mse/tasks=:3")
    with pytest.raises(BadParameter, match="one tasks"):
        Case.parse("m", "mse/tasks=a/tasks=b")


def test_full_and_tasks_are_seen_wherever_they_stand():
    assert is_full("m/mse/1x1/full")
    assert is_full("m/mse/1x1/full/tasks=a")
    assert not is_full("m/mse/1x1/quick")
    assert asks_tasks("m/mse/1x1/full/tasks=a")
    assert not asks_tasks("m/mse/1x1")


def test_weights_by_an_observer_from_outside_read_back(monkeypatch):
    theirs = SimpleNamespace(Mine=type("Mine", (RunningMax,), {}))
    monkeypatch.setitem(sys.modules, "quambench_their_weights", theirs)
    case = Case.parse("m", "mse/weights=quambench_their_weights:Mine@channel")
    assert case.id == "m/mse/1x1/weights=quambench_their_weights:Mine@channel"
    assert Case.parse("m", case.id.partition("/")[2]) == case
