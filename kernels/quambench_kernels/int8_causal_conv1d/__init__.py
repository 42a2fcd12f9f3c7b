"""Depthwise convolution over the past and SiLU, from INT8 to INT8."""

from quambench_kernels.int8_causal_conv1d.op import int8_causal_conv1d, int8_causal_conv1d_walking

__all__ = ["int8_causal_conv1d", "int8_causal_conv1d_walking"]
