"""The contract of everything that a case names with parameters: groupings, policies, refinements.

What each computes is judged beside this file, and for refinements in tests/calibration/refine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from quambench.calibration.refine import REFINEMENTS, RefinementSpec
from quambench.calibration.refine.base import Refinement
from quambench.case import Case
from quambench.core.errors import QuambenchError
from quambench.core.registry import Registry
from quambench.core.spec import Spec
from quambench.grouping import GROUPINGS, Grouping, GroupingSpec
from quambench.grouping import spec as spec_of_groupings
from quambench.policy import POLICIES, Policy, PolicySpec, base

KINDS = [(GROUPINGS, GroupingSpec, Grouping), (POLICIES, PolicySpec, Policy), (REFINEMENTS, RefinementSpec, Refinement)]
BASES = {spec: base for _, spec, base in KINDS}
BY_NUMBERS = {"clustered": "4x4"}
SPECS = [spec(BY_NUMBERS.get(name, name)) for registry, spec, _ in KINDS for name in registry]


def check_class(spec):
    """A registered class is a frozen dataclass under the base of its kind."""
    found, base = spec.found(), BASES[type(spec)]
    assert isinstance(found, type) and issubclass(found, base), f"{spec}: register a subclass of {base.__name__}"
    own = "__dataclass_params__" in vars(found) and found.__dataclass_params__.frozen
    assert own, f"{spec}: write @dataclass(frozen=True) above the class {found.__name__}, below its registration"


def check_documented(spec):
    """`quambench list` shows the first line of the docstring."""
    found = spec.found()
    written = found.__doc__ and not found.__doc__.startswith(f"{found.__name__}(")  # which a dataclass gives itself
    assert written and found.__doc__.strip(), f"{spec}: give the class {found.__name__} a docstring of one line"


def check_parameters(spec):
    """Each parameter has a default that a spec can write, and written out it is the same thing."""
    for name, field in spec.settable().items():
        fits = isinstance(field.default, (int, float, str, tuple)) and not isinstance(field.default, bool)
        assert fits, f"{spec}: give {name} a default that a spec can write: a number, a word, or a tuple of numbers"
    complete = spec.complete
    try:
        again = type(spec).parse(str(complete)).complete
    except QuambenchError as error:
        again = str(error)
    assert again == complete, f"{spec}: let the constructor take its own defaults, written {complete} (got {again})"


def check_named(spec):
    """A case may name it behind an observer, and what the case is called then is read as the same case."""
    try:
        named, reason = Case.parse("m", f"percentile/{spec}"), ""
    except QuambenchError as error:
        named, reason = None, str(error).replace("\n", " ")
    assert named is not None, f"{spec}: let a case read percentile/{spec} (got: {reason})"
    own = {GroupingSpec: "grouping", PolicySpec: "policy", RefinementSpec: "refinement"}[type(spec)]
    assert str(getattr(named, own)) == str(spec), f"{spec}: choose a name that no other part of a case has already"
    again = Case.parse("m", named.id.removeprefix("m/"))
    assert again == named, f"{spec}: let a case's own name be read as the same case (got {again.id} from {named.id})"


RULES = [check_class, check_documented, check_parameters, check_named]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{type(spec).__name__}-{spec}")
def test_contract(spec, rule):
    rule(spec)


# A sound newcomer, and faults, each of which breaks one rule

FAULTS: Registry[type] = Registry("fault", "tests/contract/")


@FAULTS.register("sound")
@dataclass(frozen=True)
class Sound(Policy):
    """A policy that plans nothing."""

    factor: float = 0.5

    def plan(self, config, observer, grouping, sensitivity=None):
        return {}


@FAULTS.register("thawed")
@dataclass
class Thawed:
    """No policy."""


@FAULTS.register("bare")
class Bare(Sound):
    """No dataclass of its own."""


@FAULTS.register("silent")
@dataclass(frozen=True)
class Silent(Sound):
    pass


@FAULTS.register("unset")
@dataclass(frozen=True)
class Unset(Policy):
    """A parameter without a default."""

    factor: float

    def plan(self, config, observer, grouping, sensitivity=None):
        return {}


@FAULTS.register("picky")
@dataclass(frozen=True)
class Picky(Sound):
    """A default that changes when it is written out."""

    def __post_init__(self):
        object.__setattr__(self, "factor", self.factor / 2)


@dataclass(frozen=True, slots=True)
class FaultSpec(Spec):
    """A fault by name."""

    kind: ClassVar[str] = "a fault"

    def found(self):
        return FAULTS[self.name]


@pytest.mark.parametrize(
    ("fault", "caught_by", "says"),
    [
        ("thawed", check_class, "register a subclass of Policy"),
        ("bare", check_class, "write @dataclass(frozen=True) above the class Bare"),
        ("silent", check_documented, "give the class Silent a docstring"),
        ("unset", check_parameters, "give factor a default"),
        ("picky", check_parameters, "take its own defaults, written picky[factor=0.25]"),
    ],
)
def test_the_contract_catches(fault, caught_by, says, rejected, monkeypatch):
    monkeypatch.setitem(BASES, FaultSpec, Policy)
    with rejected(says):
        caught_by(FaultSpec(fault))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (GroupingSpec("no_such"), "let a case read percentile/no_such"),
        (GroupingSpec("uniform"), "choose a name that no other part of a case has"),
    ],
    ids=str,
)
def test_a_name_that_a_case_cannot_have_is_noticed(spec, says, rejected):
    with rejected(says):
        check_named(spec)


@pytest.mark.parametrize("rule", [check_class, check_documented, check_parameters], ids=lambda rule: rule.__name__)
def test_a_sound_newcomer_passes(rule, monkeypatch):
    monkeypatch.setitem(BASES, FaultSpec, Policy)
    rule(FaultSpec("sound"))


def test_a_grouping_that_is_added_can_be_named(monkeypatch):
    """It joined "adaptive", which alone was known by name."""
    registry = Registry("grouping", "quambench/grouping/")
    for name in (*GROUPINGS, "mine"):
        registry.add(name, GROUPINGS["adaptive" if name == "mine" else name])
    for module in (base, spec_of_groupings):
        monkeypatch.setattr(module, "GROUPINGS", registry)
    check_named(GroupingSpec("mine"))
    check_named(GroupingSpec.parse("mine[base=2]"))
