"""How answers of probes are compared, ordered and stored, on probes made for it: the real ones take seconds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quambench.core.errors import BadArtefact
from quambench.gate import probes
from quambench.gate.probes import ProbeResult, all_probes, check, record
from quambench.gate.probes.base import Answer, Probe


class Gate:
    """Stored questions and answers, and the probes that are asked today."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.expected, self.streams = folder / "expected.json", folder / "streams.safetensors"
        self.monkeypatch = monkeypatch
        save_file({"q": torch.tensor([1, 2])}, self.streams)
        self.stored({})

    def stored(self, answers: dict) -> None:
        self.expected.write_text(json.dumps({"schema": 1, "probes": answers}))

    def asked(self, **answers: Answer | Callable) -> None:
        made = (
            Probe(name.replace("__", "/"), a if callable(a) else lambda streams, a=a: a) for name, a in answers.items()
        )
        made = tuple(made)
        self.monkeypatch.setattr(probes, "all_probes", lambda: made)

    def check(self, **options) -> tuple[ProbeResult, ...]:
        return check(self.expected, self.streams, **options)

    def record(self, *names: str) -> Path:
        return record(names, self.expected, self.streams)


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(tmp_path, monkeypatch)


INTEGERS, WORDS = torch.tensor([[1, 2], [3, 4]]), ["a", "b"]


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        ({"n": [1, 2, 3, 4], "w": ["a", "b"]}, ""),
        ({"n": [1, 2, 3, 5], "w": ["a", "b"]}, "n: [3] 5 -> 4"),
        ({"n": [1, 0, 0, 0], "w": ["a", "b"]}, "n: [1] 0 -> 2 and 2 more"),
        ({"n": [0, 0, 3, 4], "w": ["a", "b"]}, "n: [0] 0 -> 1 and 1 more"),
        ({"n": [1, 2, 3, 4], "w": ["a", "c"]}, "w: [1] c -> b"),
        ({"n": [1, 2, 3, 4], "w": ["c", "d"]}, "w: [0] c -> a and 1 more"),
        ({"n": [1, 2, 3, 5], "w": ["a", "c"]}, "n: [3] 5 -> 4"),  # the first
        ({"n": [1, 2, 3], "w": ["a", "b"]}, "n: 3 values became 4"),
        ({"n": [1, 2, 3, 4], "w": ["c"]}, "w: 1 values became 2"),
        ({"n": [1, 2, 3, 4]}, "w: new"),
        ({"n": [1, 2, 3, 4], "w": ["a", "b"], "x": [1]}, "x: gone"),
        ({"x": [1], "n": [1, 2, 3, 5], "w": ["a", "b"]}, "x: gone"),
    ],
)
def test_the_first_difference_is_told(gate: Gate, stored: dict, reason: str) -> None:
    gate.stored({"grid/ties": stored})
    gate.asked(grid__ties={"n": INTEGERS, "w": WORDS})
    assert gate.check() == (ProbeResult("grid/ties", "changed" if reason else "same", reason),)


def stepped(value: float, ulps: int) -> float:
    return (torch.tensor(value).view(torch.int32) + ulps).view(torch.float32).item()


@pytest.mark.parametrize("value", [1e-6, 1.0, 1.9999999, -0.37, 3e8])
def test_a_scale_may_be_one_step_of_float32_off(gate: Gate, value: float) -> None:
    gate.asked(grid__scale={"s": torch.tensor([0.5, value])})
    for ulps, status in ((0, "same"), (1, "same"), (-1, "same"), (2, "changed"), (-2, "changed"), (500_000, "changed")):
        gate.stored({"grid/scale": {"s": [0.5, stepped(value, ulps)]}})
        (found,) = gate.check()
        assert found.status == status, ulps
        was, now = stepped(value, ulps), torch.tensor(value).item()
        assert found.reason == ("" if status == "same" else f"s: [1] {was} -> {now}")


@pytest.mark.parametrize(
    ("was", "now", "status"),
    [
        (0.0, -0.0, "same"),
        (1e-3, -1e-3, "changed"),
        (math.inf, math.inf, "same"),
        (math.inf, -math.inf, "changed"),
        (1.0, math.nan, "changed"),
        (math.nan, 1.0, "changed"),
    ],
)
def test_scales_that_are_zero_or_not_finite(gate: Gate, was: float, now: float, status: str) -> None:
    gate.stored({"grid/scale": {"s": [was]}})
    gate.asked(grid__scale={"s": torch.tensor([now])})
    assert [r.status for r in gate.check()] == [status]


def test_an_integer_may_differ_by_nothing_however_large(gate: Gate) -> None:
    gate.stored({"int8_linear/sum": {"n": [2**40, 0]}})
    gate.asked(int8_linear__sum={"n": torch.tensor([2**40 + 1, 0])})
    assert [r.reason for r in gate.check()] == [f"n: [0] {2**40} -> {2**40 + 1}"]
    gate.asked(int8_linear__sum={"n": torch.tensor([2**40, 0])})
    assert [r.status for r in gate.check()] == ["same"]
    gate.stored({"grid/clips": {"n": [1, 0]}})
    gate.asked(grid__clips={"n": torch.tensor([True, False])})
    assert [r.status for r in gate.check()] == ["same"]


def test_what_a_broken_unit_trips_over_is_one_line(gate: Gate) -> None:
    def broken(streams: dict) -> Answer:
        raise ValueError("two\n  lines")

    gate.stored({"grid/b": {"n": [1]}})
    gate.asked(grid__a=broken, grid__b={"n": torch.tensor([1])})
    assert gate.check() == (ProbeResult("grid/a", "error", "ValueError: two lines"), ProbeResult("grid/b", "same"))


def test_new_and_gone(gate: Gate) -> None:
    gate.stored({"grid/old": {"n": [1]}, "grid/b": {"n": [1]}})
    gate.asked(grid__b={"n": torch.tensor([1])}, grid__c={"n": torch.tensor([1])})
    assert gate.check() == (
        ProbeResult("grid/b", "same"),
        ProbeResult("grid/c", "new", "no stored answer; --qb-update records it"),
        ProbeResult("grid/old", "gone", "no probe has this name any more"),
    )
    assert gate.check(only={"grid/c"}) == (ProbeResult("grid/c", "new", "no stored answer; --qb-update records it"),)
    assert gate.check(only=set()) == ()


def test_asking_gives_the_questions_and_leaves_the_callers_random_numbers(gate: Gate) -> None:
    seen = []

    def draws(streams: dict) -> Answer:
        torch.rand(3)
        seen.append((sorted(streams), streams["q"].tolist(), torch.is_grad_enabled()))
        return {"n": torch.tensor([1])}

    gate.asked(grid__a=draws)
    before = torch.random.get_rng_state()
    gate.check()
    gate.record("grid/a")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert seen == [(["q"], [1, 2], False)] * 2


def test_recorded_answers_are_a_line_each_and_the_rest_stays(gate: Gate) -> None:
    """Named: one new, one changed, one that is no more. Not named: one that changed, one new, one that is no more."""
    gate.stored(
        {
            "grid/old": {"n": [7]},
            "grid/a": {"n": [7]},
            "grid/b": {"n": [7]},
            "grid/older": {"n": [7]},
        }
    )
    gate.asked(
        grid__a={"n": INTEGERS, "w": WORDS},
        grid__b={"n": INTEGERS},
        grid__c={"s": torch.tensor([0.1])},
        grid__d={"n": INTEGERS},
    )
    assert gate.record("grid/a", "grid/c", "grid/old") == gate.expected
    assert gate.expected.read_text() == (
        '{\n "schema": 1,\n "probes": {\n'
        '  "grid/a": {\n   "n": [1, 2, 3, 4],\n   "w": ["a", "b"]\n  },\n'
        '  "grid/b": {\n   "n": [7]\n  },\n'
        '  "grid/c": {\n   "s": [0.10000000149011612]\n  },\n'
        '  "grid/older": {\n   "n": [7]\n  }\n'
        " }\n}\n"
    )
    assert sorted(gate.expected.parent.iterdir()) == [gate.expected, gate.streams]
    assert {r.name: r.status for r in gate.check()} == {
        "grid/a": "same",
        "grid/b": "changed",
        "grid/c": "same",
        "grid/d": "new",
        "grid/older": "gone",
    }


def test_units_are_asked_before_what_rests_on_them() -> None:
    def units() -> Iterator[str]:
        for probe in all_probes():
            yield probe.name.split("/")[0]

    assert list(dict.fromkeys(units())) == [
        "judge", "grid", "hadamard", "observer", "weights", "w4", "gptq", "cluster", "adaptive", "granularity", "site",
        "policy", "kernel", "int8_linear", "float", "checkpoint", "fuse", "reorder", "calibration", "sensitivity",
        "saved", "export", "step", "refine", "sampling", "evaluation", "metrics",
    ]  # fmt: skip


def test_stored_files_that_cannot_be_read_say_how_to_restore_them(gate: Gate) -> None:
    restores = rf"; git checkout {gate.expected.parent} restores it$"
    gate.expected.write_text('{"schema": 2, "probes": {}}')
    unread = rf"^{gate.expected} is not readable \(schema 2, this version reads 1\){restores}"
    with pytest.raises(BadArtefact, match=unread):
        gate.check()
    gate.stored({})
    gate.streams.unlink()
    with pytest.raises(BadArtefact, match=rf"^{gate.streams} is not readable \(.*No such file.*\){restores}"):
        gate.check()
