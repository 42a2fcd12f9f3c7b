"""Rotation by an orthonormal Hadamard matrix, then INT8."""

from quambench_kernels.hadamard_quantize.op import hadamard_quantize

__all__ = ["hadamard_quantize"]
