"""INT8 x INT8 -> INT32 linear layer, exact."""

from quambench_kernels.int8_linear.op import int8_linear

__all__ = ["int8_linear"]
