"""Ids of precisions and mixes, what they say of each site, and files that are wrong."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quambench.core.errors import BadParameter
from quambench.grids.precision import Bits, Precision

WIDTHS = st.sampled_from([2, 4, 8, 16])
FLAGS = st.fixed_dictionaries({n: st.booleans() for n in ("embedding", "lm_head", "ssm_state", "symmetric")})


def hybrid(*texts, embedding=4, lm_head="w4a8"):
    """A mix by hand."""
    head = Bits.parse(lm_head)
    layers = tuple(map(Bits.parse, texts))
    return Precision(weight_bits=head.weights, act_bits=head.acts, layers=layers, embedding_bits=embedding)


@given(WIDTHS, WIDTHS, FLAGS)
def test_an_id_reads_back(weights, acts, flags):
    made = Precision(weight_bits=weights, act_bits=acts, **flags)
    if weights == acts == 16:
        with pytest.raises(BadParameter, match=r"w16a16\S* quantizes nothing"):
            Precision.parse(made.id)
    else:
        assert Precision.parse(made.id) == made


RUNS = st.lists(st.tuples(st.sampled_from(["w4a8", "w4a16", "w8a8", "w16a8", "w16a16"]), st.integers(1, 9)), max_size=8)


@given(RUNS.filter(bool), WIDTHS, st.sampled_from(["w4a8", "w8a8", "w8a16"]), FLAGS)
def test_a_mixs_id_reads_back(runs, embedding, lm_head, flags):
    texts = [bits for bits, n in runs for _ in range(n)]
    made = replace(hybrid(*texts, embedding=embedding, lm_head=lm_head), **flags)
    assert "/" not in made.id
    kept = not made.lm_head and (embedding == 16 or not made.embedding)
    if set(texts) == {"w16a16"} and kept:
        with pytest.raises(BadParameter, match="quantizes nothing"):
            Precision.parse(made.id)
    else:
        assert Precision.parse(made.id) == made


def test_ids_read_as_a_person_would_write_them():
    assert Precision.parse("w4a16") == Precision(weight_bits=4, act_bits=16)
    assert Precision.parse("w16a8-float_embedding").id == "w16a8-float_embedding"
    assert hybrid("w4a8", "w4a16", "w4a16").id == "mix[w4a8,w4a16*2]"
    assert hybrid("w8a8", embedding=8, lm_head="w8a8").id == "mix[w8a8,embedding=w8,lm_head=w8a8]"


def test_a_long_mix_counts_and_is_told_apart_by_its_content(tmp_path):
    texts = ["w4a8", "w4a16"] * 28
    found = {hybrid(*order).id for order in (texts, texts[::-1], texts)}
    assert len(found) == 2
    for text in found:
        assert len(text) < 50
        assert text.startswith("mix[28xw4a16,28xw4a8,layers=")
        with pytest.raises(BadParameter, match="says how many layers have which precision, not which"):
            Precision.parse(text)
    (tmp_path / "long.json").write_text(json.dumps([t.upper() for t in texts]))
    assert Precision.parse(f"{tmp_path}/long.json") == hybrid(*texts)


def test_a_file_is_read_in_either_form(tmp_path):
    plain, full = tmp_path / "plain-list.json", tmp_path / "full.json"
    plain.write_text('["W4A8", "W4A16"]')
    full.write_text('{"layers": ["W8A8", "w8a16"], "embedding": "W8", "lm_head": "W8A8"}')
    by_rule = hybrid("w4a8", "w4a16")  # of Quamba2: embedding of 4 bits, lm_head W4A8
    assert (by_rule.embedding_bits, by_rule.of(None)) == (4, Bits(4, 8))
    assert Precision.parse(str(plain)) == Precision.parse(f"mix[{plain}]") == by_rule
    assert Precision.parse(f"mix[{plain}]-float_lm_head") == replace(by_rule, lm_head=False)
    assert Precision.parse(str(full)) == hybrid("w8a8", "w8a16", embedding=8, lm_head="w8a8")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot read the mix"),
        ("W4A8", "is not JSON"),
        ("3", "must be a list with a precision for each layer"),
        ('{"blocks": []}', "must be a list with a precision for each layer"),
        ("[]", "a mix needs a precision for each layer (got none)"),
        ('["W4A8", "W5X"]', "layer 1: 'W5X' is no precision: write W4A8"),
        ('["W4A8", 7]', "layer 1: '7' is no precision"),
        ('["W4A9"]', "'W4A9' is no precision"),
        ('{"layers": ["W4A8"], "head": "W8A8"}', "a mix says layers, embedding and lm_head (got 'head')"),
        ('{"layers": ["W4A8"], "lm_head": "W8"}', "lm_head: 'W8' is no precision"),
        ('{"layers": ["W4A8"], "embedding": "W8A8"}', "the embedding's precision is written W8"),
        ('["W8A8", "W8A4"]', "a mix rounds activations to one width (got 4 and 8 bits)"),
        ('["W4A4", "W4A16"]', "its layers have 4 bits, lm_head 8 unless it is said: say lm_head=w8a4"),
        ('{"layers": ["W16A16"], "embedding": "W16", "lm_head": "W16A16"}', "quantizes nothing"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, content, says):
    file = tmp_path / "mix.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(BadParameter) as caught:
        Precision.parse(str(file))
    assert says in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("w4a17", "a precision is written w8a8"),
        ("w1a8", "a precision is written w8a8"),
        ("w8a8-float_norm", "or it is a mix of them, a .json file"),
        ("mix", "a precision is written w8a8"),
        ("mix[w8a8]-odd", "a precision is written w8a8"),
        ("mix[w8a8*0]", "'w8a8*0' must be a precision and how many layers have it"),
        ("mix[]", "mix[] needs a precision for each layer"),
        ("mix[w8a8,heads=w8]", "a mix says layers, embedding and lm_head (got 'heads')"),
        ("mix[w8a8,w8a6]", "a mix rounds activations to one width (got 6 and 8 bits)"),
        ("mix[w4a4*4]", "its layers have 4 bits, lm_head 8 unless it is said: say lm_head=w8a4"),
        ("mix[w4a4,lm_head=w4a8]", "a mix rounds activations to one width (got 4 and 8 bits)"),
        ("mix[w16a16*4,embedding=w16,lm_head=w16a16]", "quantizes nothing"),
        ("mix[w16a16*4,embedding=w16]-float_lm_head", "quantizes nothing"),
        ("mix[w16a16*4]-float_embedding-float_lm_head", "quantizes nothing"),
        ("mix[w4a8,embedding=w4,embedding=w8]", "says embedding twice: say it once"),
        ("mix[w4a8,lm_head=w8a8,lm_head=w8a8]", "says lm_head twice: say it once"),
    ],
)
def test_what_is_wrong_with_an_id_is_one_line(text, says):
    with pytest.raises(BadParameter) as caught:
        Precision.parse(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


MIXED = hybrid("w8a8", "w4a16", "w16a8")


def quantized_sites(precision):
    sites = ("layers.0.z", "layers.0.ssm_state", "layers.1.z", "layers.1.ssm_state", "layers.2.z", "lm_head:input")
    return [site for site in sites if precision.quantizes(site)]


def test_each_layer_is_asked_for_itself():
    assert quantized_sites(MIXED) == ["layers.0.z", "layers.0.ssm_state", "layers.2.z", "lm_head:input"]
    assert [MIXED.has_grid(f"layers.{i}.z") for i in range(3)] == [True, False, True]
    kept = replace(MIXED, ssm_state=False, lm_head=False)
    assert quantized_sites(kept) == ["layers.0.z", "layers.2.z"]
    assert kept.has_grid("layers.0.ssm_state")  # calibrated, as ever, though not used


def test_a_layer_read_from_its_neighbour_is_seen(monkeypatch):
    original = Precision.of
    monkeypatch.setattr(Precision, "of", lambda self, layer: original(self, layer and layer - 1))
    with pytest.raises(AssertionError):
        test_each_layer_is_asked_for_itself()


@pytest.mark.parametrize(
    "text",
    ["mix[w16a16*4,embedding=w16]", "mix[w16a16*4]-float_lm_head", "mix[w16a16,w16a8]-float_lm_head-float_embedding",
     "mix[w4a4*4,lm_head=w8a4]", "mix[w4a16*4]"],
)  # fmt: skip
def test_a_mix_that_rounds_something_is_one(text):
    assert Precision.parse(text).layers


@pytest.mark.parametrize(
    ("text", "bits"),
    [("w8a8", 8), ("w4a6", 6), ("w4a16", 16), ("w16a8", 8), ("mix[w4a16*3]", 8), ("mix[w4a16,lm_head=w8a16]", 16)],
)
def test_the_grids_width(text, bits):
    assert Precision.parse(text).grid_bits == bits


def test_a_mix_of_another_models_depth_says_so():
    MIXED.check_layers(3)
    Precision().check_layers(3)
    with pytest.raises(BadParameter, match=r"mix\[w8a8,w4a16,w16a8\] is for 3 layers, and this model has 4"):
        MIXED.check_layers(4)
