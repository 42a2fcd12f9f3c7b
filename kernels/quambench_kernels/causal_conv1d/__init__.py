"""Depthwise convolution over the past, with or without SiLU."""

from quambench_kernels.causal_conv1d.op import causal_conv1d
from quambench_kernels.causal_conv1d.reference import next_history

__all__ = ["causal_conv1d", "next_history"]
