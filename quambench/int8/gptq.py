"""GPTQ: 4-bit weights that make up for each other's rounding.

Frantar et al. 2023, arXiv:2210.17323. For the output error ||(W - Ŵ) X||², of which H = X Xᵀ is all that
counts, the columns are rounded one after another, and each error is fed back into the columns that are
still float. U is upper triangular with Uᵀ U = H⁻¹ (H damped):

    1.  step  = 2 amax / 15 of the current weights of a group, at its first column
    2.  e     = (w_j - round(w_j / step) step) / U_jj
    3.  W_k  -= e U_jk for the columns k > j of the group
    4.  W_k  -= the same of all the group's columns in one product, for the columns k after the group

Step 4 is the paper's lazy update, with the group as its block: nothing reads those columns before.
Columns are taken in their given order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quambench.core.errors import BadParameter
from quambench.grids.grid import dequantize, quantize
from quambench.int8.w4 import BITS, GROUP, GroupedWeight, check_groups, group_step


def accumulate(hessian: Tensor, x: Tensor) -> Tensor:
    """hessian (in, in) float64, x (..., in) float -> hessian + Σ x xᵀ in float64, a new tensor.

    raises BadParameter for shapes that do not fit
    """
    n = x.shape[-1] if x.ndim else 0
    _check_square(hessian, n)
    rows = x.reshape(-1, n).double()
    return torch.addmm(hessian.double(), rows.t(), rows)


def gptq(weight: Tensor, hessian: Tensor, group: int = GROUP, damping: float = 0.01) -> GroupedWeight:
    """Rounds a weight to 4 bits by the inputs that it will meet, all in float64. Mutates nothing.

    weight   (out, in) float
    hessian  (in, in) float64, Σ x xᵀ over the calibration tokens, times any positive constant
    damping  what is added to the diagonal, as a share of its mean over the inputs that were ever non-zero

    An input that was always 0 tells nothing of its weights: they become 0, and count in no step.

    raises BadParameter for shapes that do not fit, a Hessian with NaN or infinity, or one that is not
    positive definite even when damped
    """
    check_groups(weight, group)
    n = weight.shape[1]
    _check_square(hessian, n)
    if not hessian.isfinite().all():
        raise BadParameter("a Hessian must be finite (got NaN or infinity)")
    if not 0 <= damping < float("inf"):
        raise BadParameter(f"damping must be finite and at least 0 (got {damping})")

    dead = hessian.diagonal() == 0
    U = _inverse_factor(_damped(hessian.double(), dead, damping))
    columns = weight.double().t().clone(memory_format=torch.contiguous_format)  # (in, out)
    columns[dead] = 0
    q = torch.empty_like(columns, dtype=torch.int8)
    steps = []
    for start in range(0, n, group):
        end = min(start + group, n)
        step = group_step(columns[start:end].abs().amax(dim=0))
        errors = torch.empty_like(columns[start:end])
        for j, error in zip(range(start, end), errors, strict=True):
            q[j] = quantize(columns[j], step.double(), BITS)
            error.copy_((columns[j] - dequantize(q[j], step.double())) / U[j, j])
            columns[j + 1 : end].addr_(U[j, j + 1 : end], error, alpha=-1)
        columns[end:].addmm_(U[start:end, end:].t(), errors, alpha=-1)
        steps.append(step)
    return GroupedWeight(q.t().contiguous(), torch.stack(steps, dim=1), group)


def _damped(hessian: Tensor, dead: Tensor, damping: float) -> Tensor:
    """The original's mean counts a 1 for each dead column, and so depends on the Hessian's unit; this does not."""
    mean = hessian.diagonal().sum() / (~dead).sum().clamp(min=1)
    return hessian + torch.diag(dead + damping * mean)


def _inverse_factor(hessian: Tensor) -> Tensor:
    """U, upper triangular, Uᵀ U = H⁻¹, without ever forming H⁻¹.

    H = R Rᵀ with R upper triangular is Cholesky's factorization of H with both axes reversed; U = R⁻¹.
    """
    reversed_factor, failed = torch.linalg.cholesky_ex(hessian.flip(0, 1))
    if failed:
        raise BadParameter("a Hessian must be positive definite once it is damped (it is not: more damping?)")
    identity = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    inverse: Tensor = torch.linalg.solve_triangular(reversed_factor.flip(0, 1), identity, upper=True)
    return inverse


def _check_square(hessian: Tensor, n: int) -> None:
    if n == 0 or hessian.shape != (n, n):
        raise BadParameter(f"a Hessian of {n} inputs must be ({n}, {n}) (got {tuple(hessian.shape)})")
