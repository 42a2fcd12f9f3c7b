"""The fields of evidence: of every array that a case stores, what it is, and its type, axes, range and kind of repeat.

Whoever adds an array adds a line here. The gate reads the table: how a stored array must look (gate/forms.py), and how
a new one is compared with it (gate/arrays.py). An array without a line belongs to a metric from outside: it may have
any type and shape, and counts as output of the INT8 model.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

Axis = int | str
"""A length; or a letter: one length for all arrays of a group, those whose names begin alike."""

SITES = "S"
"""The axis of the model's sites, the one that groups share."""

FLOATS = (torch.float64, torch.float32)
WHOLE = (torch.int32, torch.int64, torch.uint8)
NUMBERS = FLOATS + WHOLE
WITH_BOOL = (*NUMBERS, torch.bool)


class Rule(enum.Enum):
    """The rule by which the gate compares an array; it follows from what a repetition of the case does to the array.

    EXACT      counts and labels: equal on every machine
    REFERENCE  output and weights of the float model: computed in float64, stored by way of float32
    NOISY      output of the INT8 model: within a multiple of the distance between repetitions of the case
    QUANTILES  as NOISY, and never finer than their own standard error: a quantile hangs on few tokens
    ELSEWHERE  compared by a finder of its own (gate/findings.py)
    """

    EXACT = "exact"
    REFERENCE = "reference"
    NOISY = "noisy"
    QUANTILES = "quantiles"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True)
class EvidenceField:
    """The form and the meaning of all arrays whose names fit a pattern.

    name           a pattern of names, with * for any letters
    what           the quantity, in words
    unit           of its numbers
    rule           how it is compared
    dtypes         that it may have
    axes           its lengths in order, W windows, items or sequences, D documents; None: any shape
    counts         whether all its numbers are whole, whatever their dtype
    from_zero      whether no number is below 0; what was not measured is NaN
    made_by        the function that measures it
    """

    name: str
    what: str
    unit: str
    rule: Rule
    dtypes: tuple[torch.dtype, ...]
    axes: tuple[Axis, ...] | None
    made_by: str
    counts: bool = False
    from_zero: bool = False

    def fits(self, name: str) -> bool:
        return fnmatchcase(name, self.name)


_EVALUATE, _ANSWERS = "evaluation.evidence.evaluate", "evaluation.evidence.evaluate_answers"
_RUNNER, _TASKS = "run.runner", "harness.running.task_evidence"


def _per_window(name: str, what: str, unit: str, rule: Rule = Rule.NOISY, *, from_zero: bool = False) -> EvidenceField:
    return EvidenceField(name, what, unit, rule, FLOATS, ("W",), _ANSWERS, from_zero=from_zero)


def _of_sites(name: str, what: str, unit: str, rule: Rule = Rule.ELSEWHERE, *more: Axis) -> EvidenceField:
    return EvidenceField(name, what, unit, rule, FLOATS, (SITES, *more), _EVALUATE, from_zero=True)


def _answers(name: str, what: str, rule: Rule, *, from_zero: bool = False) -> EvidenceField:
    return EvidenceField(name, what, "1", rule, NUMBERS, ("W",), _ANSWERS, counts=True, from_zero=from_zero)


def _one(name: str, what: str, unit: str, made_by: str) -> EvidenceField:
    return EvidenceField(name, what, unit, Rule.ELSEWHERE, NUMBERS, (), made_by, from_zero=True)


def _of_task(name: str, what: str, unit: str, rule: Rule, dtypes: tuple[torch.dtype, ...] = WITH_BOOL,
             axes: tuple[Axis, ...] = ("W",)) -> EvidenceField:  # fmt: skip
    return EvidenceField(name, what, unit, rule, dtypes, axes, _TASKS)


FIELDS: tuple[EvidenceField, ...] = (
    EvidenceField("noise.*", "how far repetitions of the case lie apart at each site", "log ratio of energies",
                  Rule.NOISY, FLOATS, (SITES,), "gate.noise"),
    EvidenceField("groups.*", "channels in the order of their groups, and the group of each", "index", Rule.ELSEWHERE,
                  NUMBERS, ("layers", "E"), _RUNNER, counts=True),
    _of_sites("sites.signal", "mean square of the float model's values", "units²", Rule.REFERENCE),
    _of_sites("sites.accumulated", "energy of the error inside the INT8 model over the signal's, prefill", "1",
              Rule.ELSEWHERE, "windows"),
    _of_sites("sites.*", "error of one quantizer alone, and shares of its range clipped, used, wasted", "units² or 1"),
    _of_sites("decode.accumulated", "as sites.accumulated, at the last decoding step", "1", Rule.ELSEWHERE, "last"),
    EvidenceField("*.kl_quantiles", "quantiles of KL over tokens, and their standard errors", "nats", Rule.QUANTILES,
                  FLOATS, (4, 2), _ANSWERS),
    EvidenceField("*.kl_left_out", "the same quantiles without each document in turn", "nats", Rule.QUANTILES,
                  FLOATS, (4, "D"), _ANSWERS),
    EvidenceField("decode.kl_by_step", "KL of decoding to the model's own prefill, by step", "nats", Rule.NOISY,
                  FLOATS, ("steps",), _ANSWERS),
    _one("scales.*", "how many scales there are, and their bytes", "1 or bytes", _EVALUATE),
    _one("model.bytes", "bytes of the INT8 model", "bytes", _EVALUATE),
    EvidenceField("*.document", "the document of each window, item or sequence", "index", Rule.EXACT, WHOLE, ("W",),
                  _ANSWERS),
    _per_window("prefill.tokens", "tokens predicted", "tokens", Rule.EXACT, from_zero=True),
    _per_window("decode.tokens", "tokens predicted", "tokens", Rule.EXACT, from_zero=True),
    _per_window("prefill.bytes", "bytes of text predicted", "bytes", Rule.EXACT, from_zero=True),
    _per_window("prefill.nll_float", "negative log-likelihood of the float model, summed", "nats", Rule.REFERENCE),
    _per_window("decode.nll_float", "negative log-likelihood of the float model, summed", "nats", Rule.REFERENCE),
    _per_window("prefill.*", "nll, kl: sums of the INT8 model; agree: tokens of equal argmax", "nats or tokens"),
    _per_window("decode.*", "the same step by step; kl_prefill: KL to the model's own prefill", "nats or tokens"),
    _answers("items.correct_float", "whether the float model answers right", Rule.EXACT),
    _answers("items.*", "whether the INT8 model answers right", Rule.NOISY),
    _answers("recall.*.right_float", "answers of the float model that are right", Rule.EXACT, from_zero=True),
    _answers("recall.*.asked", "answers asked for", Rule.EXACT, from_zero=True),
    _answers("recall.*", "answers of the INT8 model that are right, decoded", Rule.NOISY, from_zero=True),
    EvidenceField("long.state_error", "energy of the INT8 state's error over the state's, along one long sequence", "1",
                  Rule.NOISY, FLOATS, ("layers", "times", "W"), _EVALUATE, from_zero=True),
    EvidenceField("refinement.losses", "loss on calibration and validation windows, before and after", "nats",
                  Rule.NOISY, FLOATS, (4,), _RUNNER),
    _of_task("task.*.unit", "which unit the task's values have", "code", Rule.EXACT, NUMBERS, ()),
    _of_task("task.*.higher_is_better", "whether more is better", "bool", Rule.EXACT, WITH_BOOL, ()),
    _of_task("task.*.weight", "how much an item counts", "1", Rule.EXACT),
    _of_task("task.*", "an item's value and log-likelihood, of the INT8 and of the float model", "task's", Rule.NOISY),
    # Measured by what is not ours, under a name that says what it is.
    EvidenceField("*.nll_float", "output of the float model", "", Rule.REFERENCE, NUMBERS, None, ""),
    EvidenceField("*.tokens", "a count of tokens", "tokens", Rule.EXACT, NUMBERS, None, "", from_zero=True),
    EvidenceField("*.bytes", "a count of bytes", "bytes", Rule.NOISY, NUMBERS, None, "", from_zero=True),
)  # fmt: skip
"""Every field; the first whose pattern fits a name is the array's."""

FROM_OUTSIDE = EvidenceField("*", "an array of a metric from outside", "", Rule.NOISY, NUMBERS, None, "")


def field_of(name: str) -> EvidenceField:
    """Return the field of an array."""
    return next((field for field in FIELDS if field.fits(name)), FROM_OUTSIDE)
