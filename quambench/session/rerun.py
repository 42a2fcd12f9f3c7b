"""The same cases in another process, under other numerics: part of the noise floor.

ATEN_CPU_CAPABILITY and the number of threads are read when torch starts, so another process it is.
`python -m quambench.session.rerun JOB OUT` is that process; `rerun` starts it.
"""

from __future__ import annotations

import os
import pickle
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quambench.case import Case
from quambench.core import processes
from quambench.core.scratch import scratch
from quambench.data.corpus import load_corpus
from quambench.evaluation.reference import WINDOW_BATCH
from quambench.harness.asking import Tasks
from quambench.models.checkpoint import load_checkpoint
from quambench.run.runner import ModelRun

OTHER_BATCH = WINDOW_BATCH - 5  # divides neither the windows nor the usual batch


@dataclass(frozen=True, slots=True)
class Job:
    """What to measure again."""

    model: str  # as given on the command line
    corpus: Path | None
    cases: tuple[Case, ...]
    device: str = "cpu"


def conditions() -> dict[str, str]:
    """Environment of the other process: one thread, operators in PyTorch, another instruction set if there is one.

    The C++ kernels are built for this CPU, whatever PyTorch is told; without a compiler none of them runs.
    """
    other = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CXX": "none"}
    if platform.machine() != "x86_64":
        return other
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return other | {"ATEN_CPU_CAPABILITY": "avx2" if wide else "default"}


def in_words() -> str:
    """What distinguishes the other process, for messages."""
    narrower = conditions().get("ATEN_CPU_CAPABILITY")
    isa = f", ATEN_CPU_CAPABILITY={narrower}" if narrower else ""
    return f"another process (one thread, operators in PyTorch instead of C++{isa})"


def rerun(job: Job) -> list[dict[str, Tensor]]:
    """Evidence of each case, in order, calibration and all; windows in batches of OTHER_BATCH.

    raises RuntimeError with the last line that the other process wrote when it fails
    """
    with scratch() as folder:
        at, out = folder / "job", folder / "out.safetensors"
        at.write_bytes(pickle.dumps(job))
        path = os.pathsep.join(p for p in sys.path if p)  # observers from outside are found there too
        command = [sys.executable, "-m", "quambench.session.rerun", str(at), str(out)]
        done = processes.run(command, env=os.environ | conditions() | {"PYTHONPATH": path})
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise RuntimeError(f"measuring the noise floor in another process failed: {last}")
        arrays = load_file(out)
    found: list[dict[str, Tensor]] = [{} for _ in job.cases]
    for key, array in arrays.items():
        index, _, name = key.partition(".")
        found[int(index)][name] = array
    return found


def main(job_file: Path, out: Path) -> None:
    """The other process."""
    torch.set_num_threads(int(conditions()["OMP_NUM_THREADS"]))
    job: Job = pickle.loads(job_file.read_bytes())  # written by our own parent process
    checkpoint, corpus, tasks = load_checkpoint(job.model), load_corpus(job.corpus), Tasks(job.corpus, job.device)
    run = ModelRun(checkpoint, corpus, job.cases, window_batch=OTHER_BATCH, device=job.device, tasks=tasks)
    arrays = {}
    for index, case in enumerate(job.cases):
        for name, array in (run.measure_again(case) | run.training(case)).items():
            arrays[f"{index}.{name}"] = array.clone().contiguous()  # cases share some; the format wants each apart
    save_file(arrays, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
