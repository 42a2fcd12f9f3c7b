"""Probes of every metric: value, standard error and terms, of evidence that a formula makes.

Evidence is eighths, and few of them, so that sums are exact and a float64 quotient is the same on every
machine; logarithms and roots differ by its last bit, 2^-29 of what a float32 answer may.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import torch
from torch import Tensor

from quambench import metrics as measuring
from quambench.gate.probes.base import Answer, Probe
from quambench.metrics import Measurement, Metric, Terms
from quambench.metrics import tasks as asked_tasks

WINDOWS, SEQUENCES, SITES = 10, 6, 5

Evidence = Mapping[str, Tensor]


def probes() -> Iterator[Probe]:
    """What all rest on, then each that is registered, then those of tasks, which are made as evidence has them."""
    yield Probe("metrics", lambda _: _terms())
    for name in measuring.METRICS:
        yield Probe(f"metrics/{name}", lambda _, n=name: _asked(measuring.METRICS[n], variants()))  # type: ignore[misc]
    yield Probe("metrics/task_*", lambda _: _tasks())


def evidence() -> dict[str, Tensor]:
    """Everything that any model's evidence has, a text's and a recall model's; nobody else's copy."""
    return {name: x.clone() for name, x in _evidence().items()}


@cache
def _evidence() -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for phase, shift in (("prefill", 0), ("decode", 5)):
        # Windows of several lengths, and documents of several: a mean of means is another number.
        tokens = _numbers(WINDOWS, shift, 3) + 12
        made |= {
            f"{phase}.tokens": tokens,
            f"{phase}.nll_float": tokens * 3 + _numbers(WINDOWS, shift + 1, 23) / 8,
            f"{phase}.nll": tokens * 3 + 2 + _numbers(WINDOWS, shift + 2, 31) / 8,
            f"{phase}.kl": (_numbers(WINDOWS, shift + 3, 11) + 1) / 8,
            f"{phase}.agree": tokens - _numbers(WINDOWS, shift + 4, 5),
            f"{phase}.document": torch.tensor([5, 2, 2, 5, 0, 9, 2, 5, 0, 9], dtype=torch.int32),
            f"{phase}.kl_quantiles": torch.tensor([[1, 3], [4, 5], [9, 7], [20, 11]], dtype=torch.float64)
            / (8 + shift),
            f"{phase}.kl_left_out": (_numbers(16, shift, 13).view(4, 4) + 1) / 8,
        }
    made |= {
        "prefill.bytes": _numbers(WINDOWS, 6, 13) + 50,
        "decode.kl_prefill": (_numbers(WINDOWS, 7, 17) + 1) / 8,
        "decode.kl_by_step": (_numbers(6, 8, 17) + 1) / 8,
        "decode.accumulated": (_numbers(SITES * WINDOWS, 9, 29).view(SITES, -1) + 1) / 8,
        "items.correct": torch.tensor([1, 0, 0, 1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 1], dtype=torch.uint8),
        "items.correct_float": torch.tensor([1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1], dtype=torch.uint8),
        "items.document": torch.tensor([3, 3, 0, 7, 0, 3, 7, 7, 1, 3, 0, 1, 3, 7], dtype=torch.int32),
        "sites.local_mse": (_numbers(SITES, 1, 9) + 1) / 8,
        "sites.signal": (_numbers(SITES, 2, 19) + 40) / 8,
        "sites.clipped": torch.tensor([1, 0, 5, 2, 0], dtype=torch.float64) / 64,
        "sites.range_used": torch.tensor([8, 7, torch.nan, 9, 5], dtype=torch.float64) / 8,
        "sites.range_wasted": torch.tensor([0, 1, torch.nan, 3, 2], dtype=torch.float64) / 8,
        "sites.accumulated": (_numbers(SITES * 4, 3, 23).view(SITES, -1) + 1) / 64,
        "long.state_error": (_numbers(2 * 8 * 3, 4, 37).view(2, 8, 3) + 1) / 64,
        "refinement.losses": torch.tensor([8, 4, 9, 5], dtype=torch.float64) / 8,
        "scales.count": torch.tensor(23),
        "scales.bytes": torch.tensor(92),
        "model.bytes": torch.tensor(1000),
    }
    for shift, task in enumerate(("associative", "induction", "selective_copy")):
        asked = _numbers(SEQUENCES, shift, 4).int() + 3
        made |= {
            f"recall.{task}.asked": asked,
            f"recall.{task}.right": asked - _numbers(SEQUENCES, shift + 1, 4).int(),
            f"recall.{task}.right_float": asked - _numbers(SEQUENCES, shift + 2, 3).int(),
        }
    return made


def variants() -> dict[str, Evidence]:
    """Evidence of models that have not everything, of one that went astray, and of a single document."""
    whole = evidence()
    none = torch.full((SITES,), torch.nan, dtype=torch.float64)
    zero = torch.zeros(SITES, dtype=torch.float64)
    return {
        "all": whole,
        "prose": {name: x for name, x in whole.items() if not name.startswith(("recall.", "long."))},
        "recall": {name: x for name, x in whole.items() if not name.startswith("items.")}
        | {"prefill.bytes": torch.full((WINDOWS,), torch.nan, dtype=torch.float64)},
        "no grid": whole
        | {"sites.local_mse": zero, "sites.clipped": zero, "sites.range_used": none, "sites.range_wasted": none},
        "astray": whole | {f"{phase}.nll": whole[f"{phase}.nll"] * 1000 for phase in ("prefill", "decode")},
        "one document": {
            name: torch.zeros_like(x) if name.endswith(".document") else x for name, x in whole.items()
        },
    }  # fmt: skip


def task_evidence() -> dict[str, Tensor]:
    """Of three tasks: scores, a loss per byte, answers without a likelihood; one is named as another's twin."""
    made: dict[str, Tensor] = {}
    for shift, (task, higher) in enumerate({"arc": 1, "wiki": 0, "arc_float": 1}.items()):
        numbers = [_numbers(8, 3 * shift + i, 11) / 8 for i in range(4)]
        made |= {
            f"task.{task}.value": numbers[0] + 1,
            f"task.{task}.value_float": numbers[1] + 1,
            f"task.{task}.log_likelihood": -numbers[2] - 1,
            f"task.{task}.log_likelihood_float": -numbers[3] - 1,
            f"task.{task}.weight": _numbers(8, shift, 4) + 1,
            f"task.{task}.document": torch.tensor([0, 0, 3, 1, 3, 3, 1, 0], dtype=torch.int32),
            f"task.{task}.higher_is_better": torch.tensor(higher, dtype=torch.uint8),
        }
    made["task.wiki.unit"] = torch.tensor(asked_tasks.UNITS.index("nats/byte"), dtype=torch.uint8)
    made["task.arc_float.log_likelihood"] = torch.full((8,), torch.nan, dtype=torch.float64)
    return made


def told(x: Tensor) -> Tensor:
    """As an answer: integers as they are, floats as float32, each NaN the same."""
    return torch.where(x.isnan(), torch.nan, x).float() if x.is_floating_point() else x.int()


def _numbers(n: int, shift: int, below: int) -> Tensor:
    """(n,) float64 integers from 0 to below - 1, in no order."""
    return ((torch.arange(n) * 37 + shift * 11) % 101 * 7 % below).double()


def _asked(metric: Metric, of: Mapping[str, Evidence]) -> Answer:
    """What it is; what it makes of each kind of evidence; its terms, of the first."""
    answer: dict[str, Tensor | list[str]] = {"is": [metric.name, metric.unit, metric.better, f"v{metric.version}"]}
    try:
        answer |= {kind: _number(metric.measure(made)) for kind, made in of.items()}
        if metric.terms:
            terms = [metric.terms(made) for made in of.values()]
            answer["number of terms"] = torch.tensor([len(t.values) for t in terms])
            answer["values"], answer["weights"] = told(terms[0].values), told(terms[0].weights)
            answer["documents"] = terms[0].documents.int()
    except KeyError as missing:  # a metric may be added that asks for what evidence has not, so far
        answer["evidence"] = [f"there is no {missing}"]
    return answer


def _number(found: Measurement) -> Tensor:
    """Value, standard error."""
    return told(torch.tensor([found.value, found.standard_error], dtype=torch.float64))


def _terms() -> Answer:
    """A ratio of sums and its error, of clusters of one unit, of several, and of a single one."""
    values, weights = _numbers(12, 1, 19) / 8 + 1, _numbers(12, 2, 5) + 1
    labels = {
        "each its own": torch.arange(12),
        "few": torch.tensor([4, 4, 0, 9, 9, 9, 4, 0, 9, 4, 1, 9]),
        "two": torch.tensor([3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 1]),
        "one": torch.full((12,), 7),
    }
    answer: dict[str, Tensor | list[str]] = {}
    for name, documents in labels.items():
        terms = Terms(values, weights, documents)
        found = torch.tensor([terms.mean(), terms.standard_error(), terms.n_clusters], dtype=torch.float64)
        answer[name], answer[f"{name}, sums"] = told(found), told(terms.cluster_sums(values))
    return answer


def _tasks() -> Answer:
    """Which metrics there are, which decide, and each one's number."""
    made = task_evidence()
    found = asked_tasks.task_metrics(made)
    answer: dict[str, Tensor | list[str]] = {
        "tasks": asked_tasks.tasks_in(made),
        "decide": [name for name, metric in found.items() if metric.judged is not measuring.Judged.NOT],
        "beside the others": sorted(set(measuring.metrics_of(evidence() | made)) - set(measuring.METRICS)),
        "none without tasks": sorted(asked_tasks.task_metrics(evidence())),
    }
    for name, metric in found.items():
        answer |= {f"{name}, {what}": value for what, value in _asked(metric, {"number": made}).items()}
    return answer
