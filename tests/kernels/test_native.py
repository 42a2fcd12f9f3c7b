"""C++ is built once, kept, shared between processes, and its absence is said in one line and changes no result.

What a process has found is cached in it, so each test is a process of its own.
"""

import os
import subprocess
import sys

import pytest
import torch

PROGRAM = """
import sys, torch
from quambench_kernels import native
from quambench_kernels.dispatch import UnavailableError, chosen
from quambench_kernels.hadamard_quantize import hadamard_quantize
x = torch.arange(12.0).view(1, 12)
try:
    q = hadamard_quantize(x, torch.tensor(1.0), torch.ones(3, 3), impl=sys.argv[1])
    print(chosen()["hadamard_quantize"], q.flatten().tolist())
except UnavailableError as error:
    print(error)
"""


@pytest.fixture
def run(tmp_path):
    """run(implementation, **environment) -> what PROGRAM prints, its cache in tmp_path."""

    def start(impl="auto", **environment):
        kept = {k: v for k, v in os.environ.items() if k not in ("CXX", "XDG_CACHE_HOME")}
        command = [sys.executable, "-W", "error", "-c", PROGRAM, impl]
        variables = {**kept, "QUAMBENCH_KERNELS_CACHE": str(tmp_path / "cache"), **environment}
        return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def printed(process):
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out.strip()


def kept(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.rglob("*")}


def compiler(tmp_path, text):
    """A program that stands for a compiler."""
    file = tmp_path / "c++"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


@pytest.fixture
def expected(run):
    return printed(run("reference")).removeprefix("reference ")


def test_is_built_once(run, tmp_path, expected):
    assert printed(run("native")) == f"native {expected}"
    first = kept(tmp_path / "cache")
    assert [name.partition("-")[0] for name in first] == ["hadamard_quantize"]
    assert printed(run()) == f"native {expected}"
    assert kept(tmp_path / "cache") == first


def test_four_at_once_find_a_whole_library(run, tmp_path, expected):
    assert {printed(p) for p in [run("native") for _ in range(4)]} == {f"native {expected}"}
    assert len(kept(tmp_path / "cache")) == 1


def test_another_target_is_another_library(run, tmp_path):
    """A compiler that says something else about this machine made another file."""
    printed(run("native"))
    wrapper = compiler(tmp_path, 'echo "another CPU" >&2; exec g++ "$@"')
    printed(run("native", CXX=wrapper))
    assert len(kept(tmp_path / "cache")) == 2


def test_without_a_compiler_the_plain_form_runs(run, expected):
    assert printed(run(CXX="none")) == f"reference {expected}"
    assert printed(run("native", CXX="none")) == (
        "hadamard_quantize: implementation 'native' is unavailable: no C++ compiler ($CXX is none was not found)"
    )


def test_a_compiler_that_fails_is_quoted_in_one_line(run, tmp_path, expected):
    broken = compiler(tmp_path, 'echo "first line" >&2; echo "kernel.cpp:1: error: no such thing" >&2; exit 1')
    assert printed(run(CXX=broken)) == f"reference {expected}"
    assert printed(run("native", CXX=broken)).endswith("unavailable: c++ failed: kernel.cpp:1: error: no such thing")
    assert not any(name.endswith(".so") for name in kept(tmp_path / "cache"))


def test_a_cache_that_cannot_be_written_costs_only_the_build(run, tmp_path, expected):
    (tmp_path / "cache").write_text("a file")
    process = run("native")
    out, said = process.communicate(timeout=300)
    assert (out.strip(), said.count("\n"), process.returncode) == (f"native {expected}", 1, 0)
    assert str(tmp_path / "cache") in said


def test_a_damaged_library_is_built_anew(run, tmp_path, expected):
    """Cut within a page that the loader maps: reading there would be the end of the process."""
    printed(run("native"))
    (file,) = (tmp_path / "cache").glob("*.so")
    whole = file.read_bytes()
    file.write_bytes(whole[:5000])
    assert printed(run("native")) == f"native {expected}"
    assert file.read_bytes() == whole


def test_a_compiler_may_have_arguments(run, tmp_path, expected):
    assert printed(run("native", CXX="env g++")) == f"native {expected}"


def test_threads_are_those_of_pytorch():
    from quambench_kernels.native import threads

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert threads().value == 1
    finally:
        torch.set_num_threads(before)
