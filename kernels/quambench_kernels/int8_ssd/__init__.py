"""Mamba2's state space duality from INT8, its state INT8 between calls."""

from quambench_kernels.int8_ssd.op import int8_ssd

__all__ = ["int8_ssd"]
