"""Triton's implementations on a machine without a GPU: their answers, from Triton's interpreter.

Triton decides whether it interprets when it is imported, so another process asks, `python -m
quambench.gate.probes.interpreted`. That takes some twenty seconds, so answers are kept beside the kernels that were
built for this machine, under a hash of everything they follow from: nobody asks twice what nobody has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import version
from pathlib import Path
from typing import Any

import quambench_kernels
import torch
from quambench_kernels import dispatch, kept

from quambench.core import processes
from quambench.core.reading import shown
from quambench.gate.probes import base, operators
from quambench.gate.probes.base import Answer
from quambench.gate.probes.operators import QUESTIONS, Implementation
from quambench.grids import hadamard

TRITON = "triton"
EVERY = 4  # see Implementation.every
PATIENCE = 900  # seconds for all answers, which take some twenty
_KINDS = {"int": torch.int64, "float": torch.float32}
Told = dict[str, dict[str, Any]]
"""Operator -> name -> [kind, shape, values]; or "error" -> what it tripped over."""


def answer(op: str) -> Answer:
    """What Triton's implementation of an operator answers. raises RuntimeError with what it tripped over"""
    found = _told(_key())[op]
    if "error" in found:
        raise RuntimeError(found["error"])
    return {name: torch.tensor(values, dtype=_KINDS[kind]).view(shape) for name, (kind, shape, values) in found.items()}


@cache
def _told(key: str) -> Told:
    name = f"triton-answers-{key}.json"
    if (text := kept.read(name)) is not None:
        stored: Told = json.loads(text)
        return stored
    found = _ask_elsewhere()
    if not any("error" in answers for answers in found.values()):
        kept.keep(name, json.dumps(found).encode())
    return found


def _ask_elsewhere() -> Told:
    path = os.pathsep.join(p for p in sys.path if p)
    try:
        environment = os.environ | {"PYTHONPATH": path, "TRITON_INTERPRET": "1"}
        done = processes.run([sys.executable, "-m", __name__], timeout=PATIENCE, env=environment)
        told: Told = json.loads(done.stdout.splitlines()[-1])
        return told
    except subprocess.TimeoutExpired:
        why = f"it did not end within {PATIENCE} s"
    except (IndexError, ValueError):
        why = shown((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
    return {op: {"error": f"the process that interprets Triton failed: {why}"} for op in QUESTIONS}


def _key() -> str:
    """Hash of what the answers follow from: the kernels as another process finds them, questions, interpreter."""
    found = PathFinder.find_spec(quambench_kernels.__name__)
    places = found.submodule_search_locations if found else None
    folder = Path(next(iter(places or quambench_kernels.__path__)))
    asking = [Path(str(m.__file__)) for m in (base, operators, hadamard, sys.modules[__name__])]
    h = hashlib.sha256(
        " ".join([platform.python_version(), *(version(n) for n in ("torch", "triton", "numpy"))]).encode()
    )
    for file in (*sorted(folder.rglob("*.py")), *asking):
        h.update(file.read_bytes() + b"\0")
    return h.hexdigest()[:20]


def _entry(op: str) -> dict[str, Any]:
    try:
        answers = QUESTIONS[op](Implementation(op, TRITON, every=EVERY))
    except Exception as error:  # whatever a broken kernel trips over
        return {"error": " ".join(f"{type(error).__name__}: {error}".split())}
    told: dict[str, Any] = {}
    for name, value in answers.items():
        assert not isinstance(value, list)
        told[name] = ["float" if value.is_floating_point() else "int", list(value.shape), value.flatten().tolist()]
    return told


if __name__ == "__main__":
    with torch.no_grad():
        print(json.dumps({op: _entry(op) for op in QUESTIONS if TRITON in dispatch.implementations(op)}))
