"""Compilation of every Triton kernel ahead of time, for GPUs that need not be there: `python -m quambench_kernels.aot`.

The kernels are those that the operations would start on tensors of the sizes of a Mamba and a Mamba2 with 130 million
parameters: on the meta device a launch is noted instead of made.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from tabulate import tabulate
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from quambench_kernels.causal_conv1d.triton import causal_conv1d
from quambench_kernels.hadamard_quantize.triton import hadamard_quantize
from quambench_kernels.int8_causal_conv1d.triton import int8_causal_conv1d, int8_causal_conv1d_walking
from quambench_kernels.int8_embedding.triton import int8_embedding
from quambench_kernels.int8_linear import triton as int8_linear
from quambench_kernels.int8_selective_scan.triton import int8_selective_scan
from quambench_kernels.int8_ssd.triton import int8_ssd
from quambench_kernels.rms_norm_quantize.triton import rms_norm_quantize
from quambench_kernels.selective_scan.triton import selective_scan
from quambench_kernels.ssd.triton import ssd
from quambench_kernels.triton_common import Launch, planned

TARGETS = (80, 90)  # compute capability times ten
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int8: "i8", torch.int32: "i32",
         torch.int64: "i64"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """A kernel of one case, compiled for one target."""

    case: str
    target: int
    registers: int  # of a thread, 32 bits each
    stack: int  # bytes of a thread: what registers did not hold
    shared: int  # bytes of a program
    widest: int  # bytes of the widest load or store in global memory


def table(cases: list[str] | None = None) -> list[Row]:
    """Compile the cases named, or all. raises what the compiler raises"""
    wanted = CASES if cases is None else {name: CASES[name] for name in cases}
    return [row for name, call in wanted.items() for row in _rows(name, _planned(call))]


def compiled(case: str, target: int) -> CompiledKernel:
    """Return the kernel that a case starts, compiled for a target; its stages are in `asm`."""
    return _compile(_planned(CASES[case]), target)


def _planned(call: Callable[[], Any]) -> Launch:
    planned.clear()
    call()
    (launch,) = planned
    return launch


def _rows(case: str, launch: Launch) -> Iterator[Row]:
    for target in TARGETS:
        kernel = _compile(launch, target)
        used = _resources(kernel.asm["cubin"])
        yield Row(case, target, used["REG"], used["STACK"] + used["LOCAL"], kernel.metadata.shared,
                  _widest(kernel.asm["ptx"]))  # fmt: skip


def _compile(launch: Launch, target: int) -> CompiledKernel:
    signature, constants, attributes = {}, {}, {}
    values = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)) | launch.constants
    for i, name in enumerate(launch.kernel.arg_names):
        value = values[name]
        signature[name] = "constexpr" if name in launch.constants else _type(value)
        if signature[name] == "constexpr":
            constants[name] = value
        elif isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=launch.options)


def _type(value: Any) -> str:
    """Return a value's type as a launch has it: None and the integer 1 become part of the kernel."""
    if isinstance(value, Tensor):
        return f"*{TYPES[value.dtype]}"
    if value is None or (isinstance(value, int) and value == 1):
        return "constexpr"
    return "i32" if isinstance(value, int) else "fp32"


def _resources(cubin: bytes) -> dict[str, int]:
    """Return REG, STACK, LOCAL, ... of the one kernel in a cubin."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        asked = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file)]
        told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", told)}


def _widest(ptx: str) -> int:
    """Return the bytes of the widest access to global memory; an asynchronous copy names its bytes."""
    found = [int(count or 1) * int(bits) // 8
             for count, bits in re.findall(r"\b(?:ld|st)\.global\S*?(?:\.v(\d))?\.b(\d+)\b", ptx)]  # fmt: skip
    found += [
        int(size) for size in re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^\]]*\], \[[^\]]*\], 0x(\d+)", ptx)
    ]
    return max(found)


def _of(dtype: torch.dtype) -> Callable[..., Tensor]:
    return lambda *shape: torch.empty(shape, dtype=dtype, device="meta")


f, q, i = _of(torch.float32), _of(torch.int8), _of(torch.int64)


def _conv(length: int, dtype: torch.dtype = torch.float32) -> Any:
    h = _of(dtype)
    return causal_conv1d(h(1, length, 1536), h(1536, 4), h(1536), h(1, 3, 1536), True)


def _int8_conv(length: int, scales: Tensor) -> Any:
    return int8_causal_conv1d(q(1, length, 1536), f(), f(1536, 4), f(1536), q(1, 3, 1536), scales, 127)


def _walking(length: int) -> Any:
    return int8_causal_conv1d_walking(
        q(1, length, 1536), f(), f(1536, 4), f(1536), q(1, 3, 1536), i(1, 4), i(1, 4, 4), f(1, 4, 4), 64, 127
    )


def _scan(length: int, dtype: torch.dtype = torch.float32) -> Any:
    h = _of(dtype)
    wide, narrow = h(1, length, 1536), h(1, length, 16)
    return selective_scan(wide, wide, h(1536, 16), narrow, narrow, h(1536), h(1, 1536, 16), h(1536), wide)


def _int8_scan(length: int) -> Any:
    wide, narrow = q(1, length, 1536), q(1, length, 16)
    return int8_selective_scan(wide, f(), wide, f(), f(1536, 16), narrow, f(), narrow, f(), f(1536), f(1536), wide, f(),
                               q(1, 1536, 16), f(), 127)  # fmt: skip


def _ssd(length: int, dtype: torch.dtype = torch.float32) -> Any:
    h = _of(dtype)
    group = h(1, length, 1, 128)
    return ssd(
        h(1, length, 24, 64), h(1, length, 24), h(24), group, group, h(24), h(1, 24, 64, 128), h(24), 0.0, 1.0, 256
    )


def _int8_ssd(length: int) -> Any:
    group, of_group = q(1, length, 1, 128), f(128)
    return int8_ssd(q(1, length, 24, 64), f(1536), q(1, length, 24), f(), f(24), group, of_group, group, of_group,
                    f(24), f(24), q(1, 24, 64, 128), f(24, 64, 1), 0.0, 1.0, 256, 127)  # fmt: skip


def _norm(residual: Tensor | None = None, z: Tensor | None = None, groups: int = 1, scale: Tensor | None = None) -> Any:
    return rms_norm_quantize(f(512, 1536), residual, z, None if z is None or z.dtype != torch.int8 else f(), False,
                             f(1536), 1e-5, groups, scale, 127)  # fmt: skip


def _linear(rows: int, bias: Tensor | None, out_scale: Tensor | None) -> Any:
    return int8_linear.fused(q(rows, 768), q(3072, 768), f(3072), bias, out_scale, 127)


CASES: dict[str, Callable[[], Any]] = {
    "causal_conv1d": lambda: _conv(512),
    "causal_conv1d bfloat16": lambda: _conv(512, torch.bfloat16),
    "causal_conv1d step": lambda: _conv(1),
    "int8_causal_conv1d": lambda: _int8_conv(512, f()),
    "int8_causal_conv1d table": lambda: _int8_conv(512, f(1536)),
    "int8_causal_conv1d step": lambda: _int8_conv(1, f()),
    "int8_causal_conv1d_walking": lambda: _walking(512),
    "int8_causal_conv1d_walking step": lambda: _walking(1),
    "selective_scan": lambda: _scan(512),
    "selective_scan bfloat16": lambda: _scan(512, torch.bfloat16),
    "selective_scan step": lambda: _scan(1),
    "int8_selective_scan": lambda: _int8_scan(512),
    "ssd": lambda: _ssd(512),
    "ssd bfloat16": lambda: _ssd(512, torch.bfloat16),
    "int8_ssd": lambda: _int8_ssd(512),
    "int8_ssd step": lambda: _int8_ssd(1),
    "hadamard_quantize 2048": lambda: hadamard_quantize(f(512, 2048), f(), f(1, 1), 127),
    "hadamard_quantize 12 * 128": lambda: hadamard_quantize(f(512, 1536), f(), f(12, 12), 127),
    "hadamard_quantize 40 * 128": lambda: hadamard_quantize(f(512, 5120), f(), f(40, 40), 127),
    "rms_norm_quantize": lambda: _norm(scale=f()),
    "rms_norm_quantize float": lambda: _norm(),
    "add_rms_norm_quantize": lambda: _norm(residual=f(512, 1536), scale=f()),
    "gated_rms_norm_quantize": lambda: _norm(z=q(512, 1536), groups=2, scale=f()),
    "int8_embedding": lambda: int8_embedding(i(512), q(50288, 768), f(50288)),
    "int8_linear product": lambda: int8_linear.product(q(512, 768), q(3072, 768)),
    "int8_linear": lambda: _linear(512, f(3072), f()),
    "int8_linear few rows": lambda: _linear(128, f(3072), f(3072)),
    "int8_linear step": lambda: _linear(1, None, None),
}


def main() -> None:
    """Print the table."""
    rows = [(r.case, f"sm_{r.target}", r.registers, r.stack, r.shared, r.widest) for r in table()]
    print(tabulate(rows, ["case", "target", "registers", "stack, B", "shared, B", "widest access, B"]))


if __name__ == "__main__":
    main()
