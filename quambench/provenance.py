"""Where a number comes from: machine, versions, code, settings that can change floating point."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch
from quambench_kernels.dispatch import chosen

from quambench.outside import sources

_PACKAGE = Path(__file__).parent
# Environment variables that change which float code runs.
_NUMERICS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "QUAMBENCH_KERNELS")


def machine_class(device: str = "cpu") -> str:
    """Machines whose float results should agree: "cpu-x86_64-avx512", "cuda-sm90". Names a baseline folder."""
    if torch.device(device).type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"cuda-sm{major}{minor}"
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return f"cpu-{platform.machine().lower()}-{capability}"


def provenance(device: str = "cpu") -> dict[str, Any]:
    """What a stored result says about how it was made, models being on a device. No path, host or user name."""
    return ran_here() | {
        "machine": machine_class(device),
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in _NUMERICS if name in os.environ},
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "quambench": code_digest(),
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def ran_here() -> dict[str, Any]:
    """What this process ran: code from outside, and which implementation of each kernel."""
    return sources() | {"kernels": chosen()}


def merged(own: dict[str, Any], others: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """A provenance, with what ran in other processes of the same run: code from outside, and kernels."""
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
    """Hash over the package's own sources and the kernels': which code produced a result."""
    import quambench_kernels

    h = hashlib.sha256()
    for root in (_PACKAGE, Path(quambench_kernels.__path__[0])):
        for file in sorted(f for f in root.rglob("*") if f.suffix in (".py", ".h", ".cpp")):
            h.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return h.hexdigest()[:16]


def _git(*arguments: str) -> str | None:
    """Output of git in the package's own checkout; None outside one or without git."""
    try:
        done = subprocess.run(["git", "-C", str(_PACKAGE), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
