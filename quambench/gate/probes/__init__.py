"""Probes: each unit from calibration to the stored number, asked stored questions, answers bit for bit as before.

At 8 bits most faults change scales and not, measurably, quality, and some change neither in a given
model: a tie that is rounded the other way, a floor that no site reaches. Probes see those, name the
unit, need no model and no corpus, and take a second or two.

    streams.safetensors   the questions        expected.json   the answers, to be read in a diff
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from quambench.case import Case
from quambench.core.errors import BadArtefact
from quambench.core.files import locked, write
from quambench.core.reading import LIMIT, Unreadable, check_file, mappings, number, read_json, shown, text
from quambench.gate.probes import (
    evaluation,
    feeding,
    files,
    groups,
    judge,
    kernels,
    metrics,
    models,
    sampling,
    sizes,
    units,
)
from quambench.gate.probes.base import Answer, Probe

SCHEMA = 1
FOLDER = Path(__file__).parent
STREAMS, EXPECTED = FOLDER / "streams.safetensors", FOLDER / "expected.json"
MAX_SCALE_ULP = 1  # of float32, as for artefacts
MEASURING = ("sampling", "evaluation", "metrics")  # units of what is measured on, and how
ITSELF = "judge/probes"

Stored = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a unit answered, against what is stored."""

    name: str
    status: str  # "same", "changed", "new" (nothing stored), "gone" (stored, no longer asked) or "error"
    reason: str = ""

    @property
    def broken(self) -> bool:
        """Whether the unit answers otherwise than stored."""
        return self.status in ("changed", "error")


def all_probes() -> tuple[Probe, ...]:
    """In order of dependence, so that the first that changed is where to look.

    What compares answers stands before all that it tells of; the rest of the judge behind what it is built on, since
    no other unit goes through it.
    """
    modules = (units, sizes, kernels, models, groups, feeding, files, sampling, evaluation, metrics, judge)
    made = [probe for module in modules for probe in module.probes()]
    return tuple(sorted(made, key=lambda p: _rank(p.name)))


# No unit goes through one that stands after it.
ORDER = (
    ITSELF,
    "grid", "hadamard", "observer", "weights", "w4", "gptq", "weights/recipe",
    "cluster", "adaptive", "granularity", "site", "policy",
    "kernel", "int8_linear", "float", "checkpoint", "fuse", "reorder", "gptq/fed", "cluster/statistics",
    "calibration", "sensitivity", "saved", "export", "step", "refine",
    *MEASURING,
    "judge",
)  # fmt: skip


def _rank(name: str) -> int:
    """Where a probe's unit stands in ORDER, by the longest of its names there."""
    fits = [unit for unit in ORDER if f"{name}/".startswith(f"{unit}/")]
    return ORDER.index(max(fits, key=len)) if fits else len(ORDER)


def check(
    expected: Path = EXPECTED, streams: Path = STREAMS, only: Collection[str] | None = None
) -> tuple[ProbeResult, ...]:
    """Ask every probe, or those named in `only`, in order of dependence.

    raises BadArtefact when the stored files cannot be read
    """
    return tuple(in_turn(expected, streams, only))


def in_turn(
    expected: Path = EXPECTED, streams: Path = STREAMS, only: Collection[str] | None = None
) -> Iterator[ProbeResult]:
    """As `check`, each probe asked when its result is wanted: who looks for the first that changed asks no more."""
    stored, questions = _read(expected), _questions(streams)
    asked = set()
    for probe in all_probes():
        asked.add(probe.stored_as)
        if only is None or probe.name in only:
            result = _ask(probe, questions, stored.get(probe.stored_as))
            if probe.name == ITSELF and (why := blind()):
                result = ProbeResult(ITSELF, "error", why)
            yield result
    for name in stored if only is None else ():
        if name not in asked:
            yield ProbeResult(name, "gone", "no probe has this name any more")


def rested_on(architecture: str, case: Case) -> list[str]:
    """Return the names of the probes whose units a case depends on, in order of dependence."""
    return [probe.name for probe in all_probes() if probe.rests(architecture, case)]


def record(names: Collection[str], expected: Path = EXPECTED, streams: Path = STREAMS) -> Path:
    """Store today's answers of the named probes, and forget those named that no longer exist; returns the file.

    Where several share an answer, what is stored is the answer of the one that defines it.
    """
    questions = _questions(streams)
    every = all_probes()
    wanted = {probe.stored_as for probe in every if probe.name in names}
    fresh: dict[str, Mapping[str, Any]] = {}
    with torch.random.fork_rng(), torch.no_grad():
        for probe in every:
            if probe.defines and probe.stored_as in wanted:
                fresh[probe.stored_as] = {k: _entry(v) for k, v in probe.ask(questions).items()}
    with locked(expected.parent):
        kept = {k: v for k, v in _read(expected).items() if k not in names and k not in wanted} | fresh
        order = dict.fromkeys(probe.stored_as for probe in every if probe.stored_as in kept)
        write(expected, _dump({name: kept[name] for name in order | kept}))
    return expected


def _dump(answers: Mapping[str, Mapping[str, Any]]) -> str:
    """A line an answer, so that a diff shows what changed."""
    blocks = []
    for name, answer in answers.items():
        rows = ",\n".join(f"   {json.dumps(k)}: {json.dumps(v)}" for k, v in answer.items())
        blocks.append(f"  {json.dumps(name)}: {{\n{rows}\n  }}")
    return f'{{\n "schema": {SCHEMA},\n "probes": {{\n' + ",\n".join(blocks) + "\n }\n}\n"


def _ask(probe: Probe, questions: dict[str, Tensor], stored: dict[str, Any] | None) -> ProbeResult:
    try:
        with torch.random.fork_rng(), torch.no_grad():
            answer = probe.ask(questions)
        if probe.partial and stored is not None:
            stored = {name: values for name, values in stored.items() if name in answer} or stored
        reason = "" if stored is None else _difference(answer, stored)
    except Exception as error:  # whatever a broken unit trips over
        return ProbeResult(probe.name, "error", " ".join(f"{type(error).__name__}: {error}".split()))
    if stored is None:
        return ProbeResult(probe.name, "new", "no stored answer; --qb-update records it")
    return ProbeResult(probe.name, "changed" if reason else "same", reason)


# (answer, what is stored, what is to be told of it): an entry of a scale one step away is no news, two are.
_ONE: Answer = {"q": torch.tensor([1, 2]), "scale": torch.tensor([0.5, 2.0]), "said": ["a", "b"]}
_TELLING: tuple[tuple[Answer | None, dict[str, Any] | None, str], ...] = (
    (_ONE, {"q": [1, 2], "scale": [0.5, 2.0], "said": ["a", "b"]}, "same"),
    (_ONE, {"q": [1, 2], "scale": [0.5, 2.0 + 2**-22], "said": ["a", "b"]}, "same"),
    (_ONE, {"q": [1, 2], "scale": [0.5, 2.0 + 2**-21], "said": ["a", "b"]}, "changed"),
    (_ONE, {"q": [1, 2], "scale": [0.5 - 2**-24, 2.0], "said": ["a", "b"]}, "changed"),
    (_ONE, {"q": [1, 3], "scale": [0.5, 2.0], "said": ["a", "b"]}, "changed"),
    (_ONE, {"q": [1, 2], "scale": [0.5, 2.0], "said": ["a", "c"]}, "changed"),
    (_ONE, {"q": [1, 2], "scale": [0.5, 2.0], "said": ["a"]}, "changed"),
    (_ONE, {"q": [1, 2, 3], "scale": [0.5, 2.0], "said": ["a", "b"]}, "changed"),
    (_ONE, {"q": [1, 2], "scale": [0.5, 2.0]}, "changed"),
    ({"q": _ONE["q"]}, {"q": [1, 2], "scale": [0.5, 2.0]}, "changed"),
    (None, {}, "error"),
    (_ONE, None, "new"),
)


def distrusted(results: Iterable[ProbeResult]) -> ProbeResult | None:
    """The probe that says that no verdict can be trusted, of those that were asked; None where verdicts can be.

    A fault in the judge may be one that finds everything the same, the probe of itself too: whoever judges asks this
    first. The judge is built on metrics and answers otherwise where they do: then it is they that are at fault.
    """
    broken = [result for result in results if result.broken]
    if any(result.name.split("/")[0] == "metrics" for result in broken):
        return None
    return next((result for result in broken if result.name.startswith("judge/")), None)


def blind() -> str:
    """Why nothing that `check` says can be believed; "" where it tells right from wrong.

    Said beside the stored answers: a comparison that finds everything the same finds the answer to a probe of itself
    the same too.
    """
    for place, (answer, stored, right) in enumerate(_TELLING):
        said = _ask(Probe("", lambda _, a=answer: {**a}), {}, stored).status  # type: ignore[misc]
        if said != right:
            return f"answer {place} of the probes' own comparison is {said!r} and must be {right!r}"
    return ""


def _entry(value: Tensor | list[str]) -> list[Any]:
    if isinstance(value, list):
        return value
    flat = value.flatten()
    # repr of a float32 as float64 reads back exactly.
    return flat.tolist() if value.is_floating_point() else flat.long().tolist()


def _difference(answer: Answer, stored: dict[str, Any]) -> str:
    """The first answer that is not the stored one; "" when all are."""
    for name in {**stored, **answer}:
        if name not in answer or name not in stored:
            return f"{name}: {'gone' if name in stored else 'new'}"
        now, was = answer[name], stored[name]
        if isinstance(now, list):
            pairs, n = [(i, a, b) for i, (a, b) in enumerate(zip(was, now, strict=False)) if a != b], len(now)
        else:
            pairs, n = _unequal(was, now), now.numel()
        if len(was) != n:
            return f"{name}: {len(was)} values became {n}"
        if pairs:
            i, a, b = pairs[0]
            return f"{name}: [{i}] {a} -> {b}" + (f" and {len(pairs) - 1} more" if len(pairs) > 1 else "")
    return ""


def _unequal(was: list[Any], now: Tensor) -> list[tuple[int, Any, Any]]:
    flat = now.flatten()
    before = torch.tensor(was, dtype=torch.float32 if now.is_floating_point() else torch.int64)
    if before.shape != flat.shape:
        return []
    if not now.is_floating_point():
        apart = before != flat.long()
    else:
        a, b = before.view(torch.int32).long(), flat.float().contiguous().view(torch.int32).long()
        apart = ((a - b).abs() > MAX_SCALE_ULP) & (before != flat)
    return [(int(i), before[i].item(), flat[i].item()) for i in apart.nonzero()[:, 0]]


def _questions(path: Path) -> dict[str, Tensor]:
    try:
        check_file(path, LIMIT)
        return load_file(path)
    except Unreadable as error:
        raise _unreadable(path, error.why) from None
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise _unreadable(path, shown(error)) from None


def _read(path: Path) -> Stored:
    try:
        document = read_json(path)
    except Unreadable as error:
        raise _unreadable(path, error.why) from None
    if not mappings(document, "probes"):
        raise _unreadable(path, "it must be an object with probes")
    if document.get("schema") != SCHEMA:
        raise _unreadable(path, f"schema {shown(document.get('schema'))}, this version reads {SCHEMA}")
    for name, answers in document["probes"].items():
        if not isinstance(answers, dict) or not all(map(_is_answer, answers.values())):
            raise _unreadable(path, f"the answers of {shown(name)} must be lists of numbers, or of strings")
    stored: Stored = document["probes"]
    return stored


def _is_answer(stored: Any) -> bool:
    return isinstance(stored, list) and (all(map(number, stored)) or all(map(text, stored)))


def _unreadable(path: Path, why: str) -> BadArtefact:
    return BadArtefact(f"{shown(path)} is not readable ({why}); git checkout {shown(path.parent)} restores it")
