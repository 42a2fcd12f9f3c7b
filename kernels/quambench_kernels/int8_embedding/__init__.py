"""Rows of an INT8 table, dequantized."""

from quambench_kernels.int8_embedding.op import int8_embedding

__all__ = ["int8_embedding"]
