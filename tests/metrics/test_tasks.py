"""Tasks of the harness as metrics: on evidence small enough to work by hand."""

from __future__ import annotations

import math

import pytest
import torch

from quambench.cli.eval_tasks import _compared
from quambench.gate.stats import mcnemar, paired
from quambench.metrics import METRICS, Judged
from quambench.metrics.tasks import UNITS, task_metrics, tasks_in


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


EVIDENCE = {
    "task.arc.easy.value": column(1.0, 0.0, 0.0, 0.0),
    "task.arc.easy.value_float": column(1.0, 1.0, 1.0, 0.0),
    "task.arc.easy.log_likelihood": column(-1.0, -2.0, -3.0, -4.0),
    "task.arc.easy.log_likelihood_float": column(-1.0, -1.0, -1.0, -1.0),
    "task.arc.easy.weight": column(1.0, 1.0, 1.0, 1.0),
    "task.arc.easy.document": torch.tensor([0, 0, 1, 1]),
    "task.arc.easy.higher_is_better": torch.tensor(1, dtype=torch.uint8),
    "task.wiki.value": column(30.0, 10.0),
    "task.wiki.value_float": column(20.0, 10.0),
    "task.wiki.log_likelihood": column(-30.0, -10.0),
    "task.wiki.log_likelihood_float": column(-20.0, -10.0),
    "task.wiki.weight": column(3.0, 2.0),
    "task.wiki.document": torch.tensor([0, 1]),
    "task.wiki.higher_is_better": torch.tensor(0, dtype=torch.uint8),
    "task.wiki.unit": torch.tensor(UNITS.index("nats/byte"), dtype=torch.uint8),
}


def test_each_task_is_a_metric_and_its_float_twin() -> None:
    made = task_metrics(EVIDENCE)
    assert tasks_in(EVIDENCE) == ["arc.easy", "wiki"]
    assert {name: (metric.better, metric.unit) for name, metric in made.items()} == {
        "task_arc.easy": ("higher", "score"),
        "task_arc.easy_float": ("higher", "score"),
        "task_arc.easy_nats": ("higher", "nats/document"),
        "task_wiki": ("lower", "nats/byte"),
        "task_wiki_float": ("lower", "nats/byte"),
        "task_wiki_nats": ("higher", "nats/document"),
    }
    assert decisive(EVIDENCE) == ("task_arc.easy", "task_arc.easy_nats", "task_wiki", "task_wiki_nats")
    assert {metric.name for metric in made.values()} == set(made)
    assert {metric.version for metric in made.values()} == {1}


def decisive(evidence: dict[str, torch.Tensor]) -> tuple[str, ...]:
    """Names of the tasks' metrics whose change decides."""
    return tuple(name for name, metric in task_metrics(evidence).items() if metric.judged is not Judged.NOT)


def test_a_units_place_is_stored_and_never_changes() -> None:
    assert UNITS == ("score", "nats/document", "nats/word", "nats/byte")


def renamed(name: str) -> dict[str, torch.Tensor]:
    """The evidence of arc.easy under another name."""
    return {key.replace("arc.easy", name): value for key, value in EVIDENCE.items() if key.startswith("task.arc.easy.")}


@pytest.mark.parametrize("name", ["mine_float", "arc.easy_float"])
def test_a_task_named_as_a_twin_is_gated_all_the_same(name: str) -> None:
    """Also where the twin's name is taken: it is the task's own."""
    alone = renamed(name)
    assert decisive(alone) == (f"task_{name}", f"task_{name}_nats")
    both = EVIDENCE | alone
    assert {f"task_{name}", f"task_{name}_nats", "task_arc.easy"} <= set(decisive(both))
    assert task_metrics(both)[f"task_{name}"].measure(both).value == 0.25  # the twin of arc.easy has 0.75


def test_evidence_without_a_likelihood_has_no_metric_of_it() -> None:
    generated = EVIDENCE | {"task.wiki.log_likelihood": column(float("nan"), float("nan"))}
    assert "task_wiki_nats" not in task_metrics(generated)


def test_values_and_errors_by_hand() -> None:
    found = {name: metric.measure(EVIDENCE) for name, metric in task_metrics(EVIDENCE).items()}
    assert found["task_arc.easy"].value == 0.25
    # Clusters sum to 1 and 0, of 0.25 each twice: residuals +-0.5; sqrt(2 / 1 * 0.5) / 4.
    assert found["task_arc.easy"].standard_error == pytest.approx(0.25)
    assert found["task_arc.easy_float"].value == 0.75
    assert found["task_wiki"].value == pytest.approx(40 / 5)  # loss per byte, of sums
    # Residuals 30 - 8 * 3 = 6 and 10 - 8 * 2 = -6: sqrt(2 / 1 * 72) / 5.
    assert found["task_wiki"].standard_error == pytest.approx(math.sqrt(2 * 72) / 5)
    assert found["task_wiki_nats"].value == -20  # a document each, not a byte
    # Residuals -10 and 10: sqrt(2 / 1 * 200) / 2.
    assert found["task_wiki_nats"].standard_error == pytest.approx(10)


def test_the_command_lines_difference_of_likelihoods_is_by_document() -> None:
    """As the gate's metric has it; the task's own difference is by byte."""
    found = _compared("wiki", EVIDENCE)
    assert found["log_likelihood_difference"].value == -5  # (-10 + 0) / 2
    assert found["difference"].value == pytest.approx(10 / 5)


def test_two_results_pair_by_document() -> None:
    """As the gate pairs two runs of one case."""
    metric = task_metrics(EVIDENCE)["task_arc.easy"]
    better = EVIDENCE | {"task.arc.easy.value": column(1.0, 1.0, 0.0, 0.0)}
    assert metric.terms is not None
    old, new = metric.terms(EVIDENCE), metric.terms(better)
    assert paired(old, new, 0.01).difference == 0.25
    assert mcnemar(old.values, new.values, 0.01).difference == 0.25


def test_without_tasks_there_is_no_metric_and_the_registry_has_none() -> None:
    """So that stored cases, and what their settings say, stay as they are."""
    assert task_metrics({"prefill.nll": column(1.0)}) == {}
    task_metrics(EVIDENCE)
    assert not any(name.startswith("task") for name in METRICS)
