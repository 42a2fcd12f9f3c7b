"""The other process: what it is given, what it hands back, and what is told where it fails. Here it is this one."""

from __future__ import annotations

import pickle
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from quambench.case import Case
from quambench.data.corpus import load_corpus
from quambench.evaluation.reference import WINDOW_BATCH
from quambench.models.checkpoint import load_checkpoint
from quambench.run.runner import ModelRun
from quambench.selftest.selftest import PROTOCOL
from quambench.session import rerun as module
from quambench.session.rerun import Job, conditions, in_words, rerun

SMALL = replace(PROTOCOL, calib_windows=6, calib_length=16, decode_windows=4, decode_steps=6, max_items=8)
PLAIN = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CXX": "none"}
WORDS = "another process (one thread, operators in PyTorch instead of C++{})"
MACHINES = {
    "wide": ("x86_64", "AVX512", "avx2"), "narrow": ("x86_64", "AVX2", "default"), "other": ("aarch64", "DEFAULT", ""),
}  # fmt: skip


@pytest.mark.parametrize("which", MACHINES)
def test_the_other_process_has_one_thread_no_compiler_and_another_instruction_set_where_there_is_one(
    which, monkeypatch
):
    machine, capability, other = MACHINES[which]
    monkeypatch.setattr(module.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert conditions() == (PLAIN | {"ATEN_CPU_CAPABILITY": other} if other else PLAIN)
    assert in_words() == WORDS.format(f", ATEN_CPU_CAPABILITY={other}" if other else "")


JOB = Job("tiny-model", Path("corpus"), (Case.parse("m", "mse"), Case.parse("m", "aciq")))


@pytest.fixture
def started(monkeypatch):
    """started(returncode, stderr): the process that `rerun` starts is this function; returns what it was given."""

    def instead(returncode: int = 0, stderr: str = "", arrays=None) -> dict:
        given: dict = {}

        def run(command, *, env):
            given.update(command=command[:-2], env=env, job=pickle.loads(Path(command[-2]).read_bytes()))
            if arrays is not None:
                save_file(arrays, command[-1])
            return SimpleNamespace(returncode=returncode, stderr=stderr)

        monkeypatch.setattr(module.processes, "run", run)
        return given

    return instead


def test_another_process_is_given_the_job_and_its_conditions_and_each_case_gets_its_arrays(started, monkeypatch):
    monkeypatch.setenv("SOMETHING", "else")
    monkeypatch.setattr(sys, "path", ["", "/one", "/other"])
    arrays = {"0.prefill.kl": torch.ones(2), "0.decode.kl": torch.zeros(1), "1.prefill.kl": torch.full((2,), 3.0)}
    given = started(arrays=arrays)
    found = rerun(JOB)
    assert [{name: array.tolist() for name, array in of_case.items()} for of_case in found] == [
        {"prefill.kl": [1, 1], "decode.kl": [0]}, {"prefill.kl": [3, 3]},
    ]  # fmt: skip
    assert given["command"] == [sys.executable, "-m", "quambench.session.rerun"]
    assert given["job"] == JOB
    assert given["env"]["SOMETHING"] == "else"
    assert given["env"].items() >= conditions().items()
    assert given["env"]["PYTHONPATH"].split(module.os.pathsep) == ["/one", "/other"]


@pytest.mark.parametrize(
    ("stderr", "last"),
    [("Traceback\n  line\nValueError: no good\n \n", "ValueError: no good"), (" ", "it said nothing")],
)
def test_where_the_other_process_fails_its_last_line_is_told(started, stderr, last):
    started(1, stderr)
    with pytest.raises(RuntimeError) as told:
        rerun(JOB)
    assert str(told.value) == f"measuring the noise floor in another process failed: {last}"


@pytest.fixture
def job(world, tmp_path, monkeypatch):
    """A small job as a file, and what `torch.set_num_threads` is told."""
    cases = tuple(Case.parse("tiny-model", text, SMALL) for text in ("running_max", "running_max/learned[steps=2]"))
    made = Job(str(world / "tiny-model"), world / "corpus", cases)
    (tmp_path / "job").write_bytes(pickle.dumps(made))
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    return made, tmp_path / "job", tmp_path / "out", threads


def test_it_measures_every_case_with_one_thread_in_odd_batches(job):
    made, at, out, threads = job
    module.main(at, out)
    assert threads == [1]
    assert module.OTHER_BATCH == 11 and WINDOW_BATCH % 11
    run = ModelRun(load_checkpoint(made.model), load_corpus(made.corpus), made.cases, window_batch=11)
    expected = {
        f"{i}.{name}": array
        for i, case in enumerate(made.cases)
        for name, array in (run.measure_again(case) | run.training(case)).items()
    }
    found = load_file(out)
    assert found.keys() == expected.keys()
    assert "1.refinement.losses" in found
    for name, array in expected.items():
        if not name.startswith("1."):  # what training comes to is not the same to the last bit
            assert torch.equal(found[name].nan_to_num(), array.nan_to_num()), name


def test_it_measures_on_the_device_and_with_the_tasks_of_the_job(job, monkeypatch):
    _, at, out, _ = job
    given = {}

    class Noted:
        def __init__(self, *args, **options):
            given.update(options)
            raise LookupError

    made = replace(job[0], device="cuda:1")
    at.write_bytes(pickle.dumps(made))
    monkeypatch.setattr(module, "ModelRun", Noted)
    monkeypatch.setattr(module, "Tasks", lambda corpus, device: ("tasks of", corpus, device))
    with pytest.raises(LookupError):
        module.main(at, out)
    assert given == {"window_batch": 11, "device": "cuda:1", "tasks": ("tasks of", made.corpus, "cuda:1")}
    assert Job("m", None, ()).device == "cpu"


def test_as_a_program_it_reads_the_job_and_writes_the_arrays_where_it_is_told(job, monkeypatch):
    _, at, out, _ = job
    monkeypatch.setattr(sys, "argv", ["rerun", str(at), str(out)])
    runpy.run_path(module.__file__, run_name="__main__")
    assert any(name.startswith("1.") for name in load_file(out))
