"""Operators' probes: all implementations of all operators are asked, answer alike, and are named when they do not."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from contextlib import ExitStack
from unittest.mock import patch

import pytest
import quambench_kernels
import torch
from quambench_kernels import dispatch, rounding
from quambench_kernels.dispatch import around

from quambench.case import Case
from quambench.gate import probes
from quambench.gate.probes import base, check, interpreted, kernels, operators, record
from quambench.gate.probes.operators import QUESTIONS, Implementation
from quambench.gate.probes.streams import TIE_MARGIN
from quambench.selftest.faults.implementations import edited

PROBES = {probe.name: probe for probe in probes.all_probes()}

USUAL = Case.parse("m", "percentile")
IN_PROCESS = [(op, ask.name) for op in QUESTIONS for ask in kernels._implementations(op)]


def asked(prefix):
    return {p.name for p in probes.all_probes() if p.name.startswith(prefix)}


def test_every_operator_has_a_question():
    for package in pkgutil.iter_modules(quambench_kernels.__path__):
        if package.ispkg:
            importlib.import_module(f"quambench_kernels.{package.name}")
    assert set(dispatch.operations()) == set(QUESTIONS)


def test_every_implementation_that_can_run_here_is_asked():
    for op in QUESTIONS:
        able = {i for i in dispatch.implementations(op) if dispatch.obstacle(op, i, torch.device("cpu")) is None}
        assert {f"kernel/{op}/{name}" for name in able} <= asked(f"kernel/{op}/")


def test_one_answer_is_stored_for_all_of_an_operator():
    for op in QUESTIONS:
        of_op = [p for p in probes.all_probes() if p.stored_as == f"kernel/{op}"]
        assert [p.name for p in of_op if p.defines] == [f"kernel/{op}/reference"]


def test_what_cannot_run_here_says_nothing(monkeypatch, tmp_path):
    """Not new, not gone, not changed."""
    stored = json.loads(probes.EXPECTED.read_text())
    stored["probes"] = {name: a for name, a in stored["probes"].items() if name.startswith("kernel/")}
    (tmp_path / "expected.json").write_text(json.dumps(stored))
    monkeypatch.setattr(probes, "all_probes", lambda: tuple(kernels.probes()))
    entries = dispatch._known["ssd"]
    unable = dispatch.replace(entries["native"], why_not=lambda: "no compiler")
    with patch.dict(dispatch._known, ssd=entries | {"native": unable}):
        found = {r.name: r.status for r in check(tmp_path / "expected.json")}
    assert "kernel/ssd/native" not in found
    assert "kernel/ssd/chunked" in found
    assert set(found.values()) == {"same"}


@pytest.mark.parametrize(("op", "name"), IN_PROCESS)
def test_a_fault_in_one_implementation_names_it_and_no_other(op, name):
    if name == "differentiable":
        pytest.skip("it is no entry of dispatch: its faults are planted by name")

    def nudged(run, *args):
        found = run(*args)
        first, *rest = found if isinstance(found, tuple) else (found,)
        first = first.clone()
        first.view(-1)[-1] += 1 if first.view(-1)[-1] < 100 else -1
        return (first, *rest) if isinstance(found, tuple) else first

    only = asked(f"kernel/{op}/") - {f"kernel/{op}/triton"}
    with around(op, nudged, name):
        broken = {r.name for r in check(only=only) if r.status != "same"}
    assert broken == {f"kernel/{op}/{name}"}


@pytest.mark.parametrize("op", [op for op, question in QUESTIONS.items() if question.rounded])
def test_no_rounding_hangs_on_a_float_error(op):
    """Distances from a tie by the largest integer, as for the step's probes; ties are for the exact part."""
    least = [0.5]

    def watch(x, step, top):
        quotient = x.double() / torch.as_tensor(step).double()
        top = top or float(quotient.abs().max())
        within = quotient[(quotient > -top - 1.4) & (quotient < top + 0.4)]
        least.append(float((within - within.floor() - 0.5).abs().min()) / top)

    def watched(original, top=None):
        return lambda x, step, q_max=None: (watch(x, step, q_max), original(x, step, *([q_max] if q_max else [])))[1]

    reference = importlib.import_module(f"quambench_kernels.{op}.reference")
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(patch.object(operators, "rounded", watched(operators.rounded)))
        stack.enter_context(patch.object(reference, "quantize_ref", watched(rounding.quantize_ref), create=True))
        QUESTIONS[op].rounded(Implementation(op, "reference"))
    assert len(least) > 1
    assert min(least) > TIE_MARGIN


def test_no_single_value_can_change_and_no_two_change_places_unseen():
    x = operators.some(7, 9).int()
    for i in (0, 31, 62):
        other = x.clone()
        other.view(-1)[i] += 1
        assert not torch.equal(base.told(other), base.told(x))
    assert not torch.equal(base.told(x.flip(0)), base.told(x))


def test_triton_is_asked_elsewhere_once_and_an_edit_is_asked_anew():
    if torch.cuda.is_available() or "kernel/int8_embedding/triton" not in asked("kernel/int8_embedding/"):
        pytest.skip("no Triton to interpret")
    only = {"kernel/int8_embedding/triton"}
    assert [r.status for r in check(only=only)] == ["same"]
    with patch.object(interpreted, "_ask_elsewhere", side_effect=AssertionError("asked again")):
        assert [r.status for r in check(only=only)] == ["same"]
    key = interpreted._key()
    with edited("int8_embedding/triton.py", "import triton\n", "import triton\n\n"):
        assert interpreted._key() != key
    assert interpreted._key() == key


def test_answers_of_a_process_that_fails_are_one_line_and_not_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("QUAMBENCH_KERNELS_CACHE", str(tmp_path))
    monkeypatch.setattr(interpreted.sys, "executable", "/bin/false")
    monkeypatch.setattr(interpreted, "_key", lambda: "a key of its own")
    with pytest.raises(RuntimeError, match="the process that interprets Triton failed: it said nothing"):
        interpreted.answer("ssd")
    assert not list(tmp_path.iterdir())


def test_kept_answers_that_were_altered_are_asked_anew(monkeypatch, tmp_path, capsys):
    """Another number in them would be judged as what Triton answers."""
    monkeypatch.setenv("QUAMBENCH_KERNELS_CACHE", str(tmp_path))
    told = {"ssd": {"y": ["int", [2], [1, 2]]}}
    monkeypatch.setattr(interpreted, "_ask_elsewhere", lambda: told)
    assert interpreted._told.__wrapped__("key") == told
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes().replace(b"[1, 2]", b"[1, 3]"))
    assert interpreted._told.__wrapped__("key") == told
    assert capsys.readouterr().err.count("its sha256 is another") == 1
    monkeypatch.setattr(interpreted, "_ask_elsewhere", lambda: pytest.fail("asked again"))
    assert interpreted._told.__wrapped__("key") == told


@pytest.mark.parametrize(
    ("says", "named"),
    [
        (r"printf '\377\033[31m rubbish\n' >&2; printf '\376\n'", r"failed: \ufffd\\x1b\[31m rubbish$"),
        ("sleep 60", "failed: it did not end within 1 s$"),
    ],
)
def test_a_process_that_hangs_or_prints_rubbish_is_one_line(monkeypatch, tmp_path, says, named):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nexec {says}\n" if "sleep" in says else f"#!/bin/sh\n{says}\n")
    program.chmod(0o755)
    monkeypatch.setattr(interpreted.sys, "executable", str(program))
    monkeypatch.setattr(interpreted, "PATIENCE", 1)
    found = interpreted._ask_elsewhere()["ssd"]["error"]
    assert re.search(named, found)


def test_an_edit_that_fits_nowhere_is_refused():
    with pytest.raises(ValueError, match="has 0 places"), edited("ssd/triton.py", "no such line", ""):
        pass


def test_recording_one_implementation_stores_what_the_reference_answers(tmp_path):
    expected = tmp_path / "expected.json"
    expected.write_text('{"schema": 1, "probes": {}}')
    with around("int8_embedding", lambda run, *args: run(*args) * 2, "native"):
        record({"kernel/int8_embedding/native"}, expected)
        found = {r.name: r.status for r in check(expected, only=asked("kernel/int8_embedding/"))}
    assert set(json.loads(expected.read_text())["probes"]) == {"kernel/int8_embedding"}
    assert found["kernel/int8_embedding/native"] == "changed"
    assert found["kernel/int8_embedding/reference"] == "same"


@pytest.mark.parametrize(
    ("name", "architectures"),
    [
        ("kernel/int8_linear/few_rows", ("mamba", "mamba2")),
        ("kernel/int8_linear.finish/native", ("mamba", "mamba2")),
        ("kernel/selective_scan/in_place", ("mamba",)),
        ("kernel/int8_ssd/chunked", ("mamba2",)),
        ("kernel/int8_causal_conv1d_walking/reference", ("mamba2",)),
        ("kernel/ssd/gradient", ()),
    ],
)
def test_a_case_rests_on_implementations_that_are_not_chosen(name, architectures):
    assert tuple(kind for kind in ("mamba", "mamba2") if PROBES[name].rests(kind, USUAL)) == architectures


def test_gradients_are_for_who_trains():
    assert PROBES["kernel/ssd/gradient"].rests("mamba2", Case.parse("m", "percentile/w8a4/learned[steps=8]"))
