"""int8_embedding in Triton."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# Triton reads the annotations of kernels, and knows constexpr alone.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from quambench_kernels.triton_common import ceil_power, launch


@triton.jit
def int8_embedding_kernel(tokens, table, scale, y, rows, width, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64)
    token = tl.load(tokens + i)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    # A token outside the table reads nothing, and its row of NaN shows wherever it is used: a kernel cannot raise.
    known = (token >= 0) & (token < rows)
    q = tl.load(table + token * width + column, mask=column < tl.where(known, width, 0), other=0)
    step = tl.load(scale + token, mask=known, other=float("nan"))
    tl.store(y + i * width + column, q.to(tl.float32) * step, mask=column < width)


def int8_embedding(tokens: Tensor, table_q: Tensor, scale: Tensor) -> Tensor:
    """Compute int8_embedding_ref, with its signature.

    Tokens are not checked first, since that would wait for the device: one outside the table becomes a row of NaN.
    """
    tokens, table, scale = tokens.contiguous(), table_q.contiguous(), scale.contiguous()
    rows, width = table.shape
    y = torch.empty(*tokens.shape, width, dtype=torch.float32, device=table.device)
    block = min(ceil_power(width), 1024)
    grid = (tokens.numel(), -(-width // block))
    launch(int8_embedding_kernel, grid, tokens, table, scale, y, rows, width, BLOCK=block, warps=4)
    return y
