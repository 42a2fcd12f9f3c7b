"""RMSNorm, plain, after adding to the residual stream, or gated; its output INT8, or float where no scale is given."""

from quambench_kernels.rms_norm_quantize.op import add_rms_norm_quantize, gated_rms_norm_quantize, rms_norm_quantize

__all__ = ["add_rms_norm_quantize", "gated_rms_norm_quantize", "rms_norm_quantize"]
