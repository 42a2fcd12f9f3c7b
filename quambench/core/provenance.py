"""The origin of a number: machine, versions, code, and settings that can change floating point."""

from __future__ import annotations

import hashlib
import os
import platform
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch
from quambench_kernels.dispatch import chosen

from quambench.core import git
from quambench.core.plugins import sources
from quambench.core.version import installed

_PACKAGE = Path(__file__).parents[1]
# Environment variables that change which float code runs.
_NUMERICS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "QUAMBENCH_KERNELS")


def machine_class(device: str = "cpu") -> str:
    """Return the name of a class of machines whose float results should agree: "cpu-x86_64-avx512", "cuda-sm90".

    Baseline folders are named by it.
    """
    if torch.device(device).type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"cuda-sm{major}{minor}"
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return f"cpu-{platform.machine().lower()}-{capability}"


def provenance(device: str = "cpu", folder: Path | None = None) -> dict[str, Any]:
    """Return what a stored result says about how it was made. It holds no path, host or user name.

    device  where models are
    folder  of the project whose code is judged (default: the current one); `commit` and `dirty` are of the
            repository that tracks it, "unknown" where git cannot tell
    """
    code = judged(folder or Path.cwd())
    return ran_here() | {
        "machine": machine_class(device),
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in _NUMERICS if name in os.environ},
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "commit": code.commit,
        "dirty": code.dirty,
        "quambench": code_digest(),
        **quambench_itself(),
    }


@cache
def judged(folder: Path) -> git.State:
    """Return which code lies in a folder. git is asked once: this process keeps what it loaded, whatever is stored
    later.
    """
    return git.state(folder)


def ran_here() -> dict[str, Any]:
    """Return what this process ran: code from outside, and which implementation of each kernel."""
    return sources() | {"kernels": chosen()}


def merged(own: dict[str, Any], others: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a provenance with what other processes of the same run used added: code from outside, and kernels."""
    for other in others:
        for key in ("observers", "groupings", "calibrations"):
            if found := own.get(key, {}) | other.get(key, {}):
                own[key] = dict(sorted(found.items()))
        for op, ran in other.get("kernels", {}).items():
            both = {*own["kernels"].get(op, "").split("+"), *ran.split("+")} - {""}
            own["kernels"][op] = "+".join(sorted(both))
    return own


@cache
def code_digest() -> str:
    """Return a hash over the sources of this package and of the kernels: which code produced a result."""
    import quambench_kernels

    h = hashlib.sha256()
    for root in (_PACKAGE, Path(quambench_kernels.__path__[0])):
        for file in sorted(f for f in root.rglob("*") if f.suffix in (".py", ".h", ".cpp")):
            h.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return h.hexdigest()[:16]


@cache
def quambench_itself() -> dict[str, Any]:
    """Return which quambench this is: its version, and its commit and dirtiness where it runs from its own checkout.

    Where it is merely installed into an environment inside of some repository, that repository says nothing about it.
    """
    top = _PACKAGE.parent
    if not git.holds(top, "pyproject.toml", f"{_PACKAGE.name}/core/{Path(__file__).name}"):
        return {"quambench_version": installed()}
    own = git.state(top)
    written = tomllib.loads((top / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    return {"quambench_version": written, "quambench_commit": own.commit, "quambench_dirty": own.dirty}
