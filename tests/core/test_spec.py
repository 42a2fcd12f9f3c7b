"""How things with parameters are written: what is written is read back; what is wrong is said in one line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quambench.core.errors import BadParameter
from quambench.core.spec import Spec, written


@dataclass
class Thing:
    size: float = 1.5
    word: str = "auto"
    several: tuple[float, ...] = (0.5, 1.0)
    pairs: tuple[tuple[float, float], ...] = ((50.0, 0.5), (math.inf, 0.1))
    late: float = field(default=1.0, metadata={"neutral": True})
    fixed: int = 8

    def __post_init__(self):
        if self.size < 0:
            raise BadParameter(f"size must not be negative (got {self.size})")


@dataclass
class Bare:
    fixed: int = 8


class ThingSpec(Spec):
    kind: ClassVar[str] = "a thing"
    fixed: ClassVar[frozenset[str]] = frozenset({"fixed"})

    def found(self):
        return Bare if self.name == "bare" else Thing


number = st.floats(allow_nan=False)
pair = st.tuples(number, number)
parameters = st.fixed_dictionaries(
    {},
    optional={
        "size": st.floats(min_value=0, allow_nan=False),
        "word": st.from_regex(r"[a-z_]+", fullmatch=True),
        "several": st.lists(number, min_size=1).map(tuple),
        "pairs": st.lists(pair, min_size=1).map(tuple),
        "late": number,
    },
)


@given(parameters)
def test_what_is_written_is_read_back(given_parameters):
    spec = ThingSpec("thing", tuple(sorted(given_parameters.items())))
    read = ThingSpec.parse(str(spec))
    assert read == spec
    assert str(read) == str(spec)
    built = spec.make(fixed=4)
    assert {key: getattr(built, key) for key in given_parameters} == given_parameters
    assert built.fixed == 4
    assert ThingSpec.parse(str(spec.complete)).complete == spec.complete


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("thing[size=2]", "size", 2.0),
        ("thing[size=1e-3]", "size", 0.001),
        ("thing[size=inf]", "size", math.inf),
        ("thing[word=gauss]", "word", "gauss"),
        ("thing[several=0.9]", "several", (0.9,)),
        ("thing[several=0.9|1]", "several", (0.9, 1.0)),
        ("thing[pairs=1:2|inf:4]", "pairs", ((1.0, 2.0), (math.inf, 4.0))),
        (" thing [ size = 2,] ", "size", 2.0),
    ],
)
def test_by_hand(text, key, value):
    spec = ThingSpec.parse(text)
    assert spec.name == "thing"
    assert spec.parameters == ((key, value),)
    assert getattr(spec.build(), key) == value


def test_parameters_are_written_in_one_order():
    assert str(ThingSpec.parse("thing[word=b,size=1]")) == "thing[size=1.0,word=b]"


def test_written_by_hand():
    assert written(((50.0, 0.5), (math.inf, 0.1))) == "50.0:0.5|inf:0.1"
    assert written((0.999, 1.0)) == "0.999|1.0"
    assert written("auto") == "auto"
    assert written(0.1) == "0.1"


def test_complete_names_all_but_what_is_neutral_and_at_its_default():
    everything = "thing[pairs=50.0:0.5|inf:0.1,several=0.5|1.0,size=1.5,word=auto]"
    assert str(ThingSpec.parse("thing").complete) == everything
    assert ThingSpec.parse("thing[late=1]").complete == ThingSpec.parse("thing").complete
    assert str(ThingSpec.parse("thing[late=0.5]").complete) == everything.replace("thing[", "thing[late=0.5,")
    assert str(ThingSpec.parse("bare").complete) == "bare"


def test_one_object_of_each_spec_is_built_for_its_values(monkeypatch):
    built = []
    monkeypatch.setattr(Thing, "__post_init__", lambda self: built.append(self))
    for _ in range(3):
        spec = ThingSpec.parse("thing[size=7.25,word=once]")
        assert spec.values["size"] == 7.25
        assert spec.complete.complete == spec.complete
    assert len(built) == 2  # of the spec, and of the one with its defaults written out


def test_values_are_those_of_what_the_name_stands_for_now(monkeypatch):
    @dataclass
    class Newer(Thing):
        size: float = 99.0

    assert ThingSpec("thing").values["size"] == 1.5
    monkeypatch.setattr(ThingSpec, "found", lambda self: Newer)
    assert ThingSpec("thing").values["size"] == 99.0


def test_a_whole_number_is_kept_as_it_was_given():
    assert str(ThingSpec("thing", (("size", 4.0),)).complete) == str(ThingSpec.parse("thing[size=4]").complete)
    assert "size=4," in str(ThingSpec("thing", (("size", 4),)).complete)


def test_given_replaces_and_adds():
    spec = ThingSpec.parse("thing[size=2,word=b]").given(size=3.0, late=0.5)
    assert str(spec) == "thing[late=0.5,size=3.0,word=b]"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a thing is written name or name[key=value,...] (got '')"),
        ("thing[size=1", "a thing is written"),
        ("thing[size=1]x", "a thing is written"),
        ("thing[colour=1]", "thing has no parameter 'colour'; it takes size, word, several, pairs, late"),
        ("thing[colour=red]", "thing[colour=red]: thing has no parameter 'colour'"),
        ("thing[fixed=4]", "thing has no parameter 'fixed'"),
        ("bare[size=1]", "bare has no parameter 'size'; it takes none"),
        ("thing[size=x]", "thing[size=x]: size must be a number (got 'x')"),
        ("thing[size]", "thing[size]: parameters are written name=value (got 'size'): write thing[size=1.5]"),
        ("thing[size=]", "parameters are written name=value (got 'size='): write thing[size=1.5]"),
        ("thing[2]", "thing[2]: parameters are written name=value (got '2'): write thing[size=2.0]"),
        ("thing[-2]", "write thing[word=-2]"),  # the first that takes the value: size does not
        ("thing[late:2]", "write thing[late=2.0]"),
        ("bare[2]", "parameters are written name=value (got '2'): write bare"),
        ("thing[size=0,5]", "thing[size=0,5]: a comma parts parameters: write size=0.5"),
        ("thing:2", "a thing is written name or name[key=value,...]: write thing[size=2.0] (got 'thing:2')"),
        ("thing(size=2)", "write thing[size=2.0] (got 'thing(size=2)')"),
        ("thing=2", "write thing[size=2.0] (got 'thing=2')"),
        ("thing 2", "write thing[size=2.0] (got 'thing 2')"),
        ("thing[size=1|2]", "thing[size=1|2]: size must be a number (got '1|2')"),
        ("thing[several=1|x]", "several must be numbers, as in 0.5|1.0 (got '1|x')"),
        ("thing[several=]", "write thing[several=0.5|1.0]"),
        ("thing[pairs=1:]", "pairs must be numbers"),
        ("thing[size=-1]", "size must not be negative (got -1.0)"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text, says):
    with pytest.raises(BadParameter) as caught:
        ThingSpec.parse(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
