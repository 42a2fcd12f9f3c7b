"""Mamba2's state space duality, with its step sizes' softplus before it and D x after it."""

from quambench_kernels.ssd.op import ssd

__all__ = ["ssd"]
