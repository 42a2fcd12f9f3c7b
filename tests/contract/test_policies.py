"""The contract that every policy meets: an assignment for every site that the runtime can work with, or one line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import cycle
from typing import ClassVar

import pytest

from quambench.core.errors import BadParameter, QuambenchError
from quambench.grids.granularity import GROUPS
from quambench.models import ModelConfig
from quambench.models.sites import sites_of
from quambench.observers import OBSERVERS, ObserverSpec
from quambench.policy import POLICIES, Assignment, check_plan
from quambench.policy.base import PER_TENSOR, groupings
from quambench.policy.quamba import Quamba
from quambench.policy.sensitivity import REMEDIES

CONFIGS = {
    "mamba": ModelConfig(architecture="mamba", d_model=8, n_layers=4, vocab_size=8, d_state=3, dt_rank=2),
    "mamba2": ModelConfig(architecture="mamba2", d_model=8, n_layers=4, vocab_size=8, d_state=3, head_dim=4),
}
PERCENTILE = ObserverSpec("percentile")


def costs(config):
    """Sites cost more and more, and every remedy helps: what a policy that measures is given."""
    return {
        site: {remedy: (1.0 + i) / (1 + j) for j, remedy in enumerate(REMEDIES)}
        for i, site in enumerate(sites_of(config))
    }


def planned(policy, config, observer=PERCENTILE, grouping=PER_TENSOR):
    return policy.plan(config, observer, grouping, costs(config) if policy.measures else None)


def check_every_site_is_planned(policy, config):
    name, made, wanted = type(policy).__name__, planned(policy, config), list(sites_of(config))
    missing = [site for site in wanted if site not in made]
    assert not missing, f"{name}: assign an observer and a granularity to {missing[0]} as well"
    unknown = [site for site in made if site not in wanted]
    assert not unknown, f"{name}: leave out {unknown[0]}, which is no site of a {config.architecture} model"
    assert list(made) == wanted, f"{name}: plan sites in the order of sites_of(config), the forward pass's"


def check_the_runtime_can_work_with_it(policy, config):
    name, made = type(policy).__name__, planned(policy, config)
    try:
        check_plan(config, made)
        for assigned in made.values():
            assigned.observer.build()
    except QuambenchError as error:
        reason = str(error).replace("\n", " ")
    else:
        reason = ""
    assert not reason, f"{name}: plan only what a site allows and an observer takes (got: {reason})"


def check_it_plans_or_refuses_in_one_line(policy, config):
    """Whatever the observer and the grouping."""
    name = type(policy).__name__
    for observer in map(ObserverSpec, OBSERVERS):
        for grouping in (*groupings(), "4x4"):
            try:
                made, refusal = planned(policy, config, observer, grouping), None
            except Exception as error:
                made, refusal = None, error
            plain = refusal is None or (isinstance(refusal, BadParameter) and "\n" not in str(refusal))
            assert plain, (
                f"{name}: raise BadParameter, with one line, where {observer}/{grouping} does not fit"
                f" (got {type(refusal).__name__})"
            )
            assert made is None or list(made) == list(sites_of(config)), (
                f"{name}: plan every site under {observer}/{grouping}, or raise BadParameter"
            )


def check_twice_is_the_same(policy, config):
    same = planned(policy, config) == planned(policy, config)
    assert same, f"{type(policy).__name__}: give equal plans for equal arguments; keep nothing between two calls"


def check_the_sensitivity_is_left_alone(policy, config):
    given, before = costs(config), costs(config)
    policy.plan(config, PERCENTILE, PER_TENSOR, given)
    assert given == before, f"{type(policy).__name__}: copy the sensitivity before changing it"


def check_what_it_measures_is_said(policy, config):
    """A policy that measures needs it and says so; another does not read it."""
    name, measured = type(policy).__name__, policy.plan(config, PERCENTILE, PER_TENSOR, costs(config))
    plan, refusal = without_sensitivity(policy, config)
    if policy.measures:
        assert plan is None, f"{name}: it plans without a sensitivity, so set measures to False"
        plain = isinstance(refusal, BadParameter)
        assert plain, f"{name}: raise BadParameter where no sensitivity was measured (got {type(refusal).__name__})"
    else:
        assert plan == measured, f"{name}: it reads the sensitivity, so set measures: ClassVar[bool] = True"
        assert not policy.candidates, f"{name}: it has candidates to weigh, so set measures: ClassVar[bool] = True"


def without_sensitivity(policy, config):
    """Return the plan, or what is raised instead."""
    try:
        return policy.plan(config, PERCENTILE, PER_TENSOR, None), None
    except Exception as error:
        return None, error


def check_what_it_groups_is_said(policy, config):
    """A policy that groups heads and channels has a scale for each group, also where the case names no grouping."""
    grouped = any(assigned.granularity == GROUPS for assigned in planned(policy, config).values())
    assert grouped == policy.groups, (
        f"{type(policy).__name__}: its plan {'has' if grouped else 'has no'} scales per group, "
        f"so set groups: ClassVar[bool] = {grouped}"
    )


def check_a_model_without_heads_is_refused(policy, config=CONFIGS["mamba"]):
    """By a policy that groups heads."""
    try:
        planned(policy, config)
    except BadParameter as error:
        reason = str(error)
    else:
        reason = ""
    assert "has none" in reason and "\n" not in reason, (
        f'{type(policy).__name__}: raise BadParameter("... and a Mamba model has none: ...") where there are no heads'
    )


RULES = [
    check_every_site_is_planned,
    check_the_runtime_can_work_with_it,
    check_it_plans_or_refuses_in_one_line,
    check_twice_is_the_same,
    check_the_sensitivity_is_left_alone,
    check_what_it_measures_is_said,
    check_what_it_groups_is_said,
]
PLANNED = [(name, kind) for name in POLICIES for kind in CONFIGS if kind == "mamba2" or not POLICIES[name].groups]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize(("name", "kind"), PLANNED)
def test_contract(name, kind, rule):
    rule(POLICIES[name](), CONFIGS[kind])


@pytest.mark.parametrize("name", [name for name in POLICIES if POLICIES[name].groups])
def test_a_model_without_heads_is_refused(name):
    check_a_model_without_heads_is_refused(POLICIES[name]())


# Faults, one for each rule


class Spoilt(Quamba):
    """Quamba's plan, its sites spoilt by `change`."""

    def plan(self, config, observer, grouping, sensitivity=None):
        return self.change(dict(super().plan(config, observer, grouping)), observer)


class LeavesASiteOut(Spoilt):
    def change(self, plan, observer):
        plan.pop("layers.2.ssm_state")
        return plan


class AddsASite(Spoilt):
    def change(self, plan, observer):
        return plan | {"layers.9.ssm_state": Assignment(observer, "tensor")}


class TurnsRound(Spoilt):
    def change(self, plan, observer):
        return dict(reversed(plan.items()))


class TooFine(Spoilt):
    def change(self, plan, observer):
        return plan | {"layers.1.out_proj:input": Assignment(observer, "channel")}


class OfNoObserver(Spoilt):
    def change(self, plan, observer):
        return plan | {"layers.0.ssm_state": Assignment(ObserverSpec("running_max").given(alpha=0.5), "tensor")}


class TakesPercentileAlone(Spoilt):
    def change(self, plan, observer):
        return plan if observer == PERCENTILE else {}[observer.name]


class Alternates(Spoilt):
    turns: ClassVar = cycle((PERCENTILE, ObserverSpec("mse")))

    def change(self, plan, observer):
        newest = next(self.turns)
        return {site: replace(assigned, observer=newest) for site, assigned in plan.items()}


class ReadsInSecret(Quamba):
    def plan(self, config, observer, grouping, sensitivity=None):
        first = next(iter(sensitivity))
        return dict(super().plan(config, observer, grouping)) | {first: Assignment(observer, "float")}


class CrashesUnmeasured(ReadsInSecret):
    measures = True


class MeasuresForNothing(Quamba):
    measures = True


class WritesToWhatWasMeasured(Quamba):
    measures = True

    def plan(self, config, observer, grouping, sensitivity=None):
        sensitivity.clear()
        return super().plan(config, observer, grouping)


@dataclass(frozen=True)
class WeighsForNothing(Quamba):
    candidates: int = 2


class SaysItGroups(Quamba):
    groups = True


@pytest.mark.parametrize(
    ("fault", "caught_by", "says"),
    [
        (LeavesASiteOut, check_every_site_is_planned, "a granularity to layers.2.ssm_state as well"),
        (AddsASite, check_every_site_is_planned, "leave out layers.9.ssm_state"),
        (TurnsRound, check_every_site_is_planned, "in the order of sites_of(config)"),
        (TooFine, check_the_runtime_can_work_with_it, "layers.1.out_proj:input cannot be quantized per channel"),
        (OfNoObserver, check_the_runtime_can_work_with_it, "running_max has no parameter 'alpha'"),
        (TakesPercentileAlone, check_it_plans_or_refuses_in_one_line, "raise BadParameter, with one line, where"),
        (Alternates, check_twice_is_the_same, "keep nothing between two calls"),
        (ReadsInSecret, check_what_it_measures_is_said, "set measures: ClassVar[bool] = True"),
        (CrashesUnmeasured, check_what_it_measures_is_said, "raise BadParameter where no sensitivity was measured"),
        (MeasuresForNothing, check_what_it_measures_is_said, "set measures to False"),
        (WritesToWhatWasMeasured, check_the_sensitivity_is_left_alone, "copy the sensitivity"),
        (WeighsForNothing, check_what_it_measures_is_said, "it has candidates to weigh"),
        (SaysItGroups, check_what_it_groups_is_said, "set groups: ClassVar[bool] = False"),
        (SaysItGroups, check_a_model_without_heads_is_refused, "where there are no heads"),
    ],
)
def test_the_contract_catches(fault, caught_by, says, rejected):
    headless = caught_by is check_a_model_without_heads_is_refused
    with rejected(says):
        caught_by(fault(), CONFIGS["mamba" if headless else "mamba2"])
