"""Mamba's selective scan from INT8, its state INT8 between calls."""

from quambench_kernels.int8_selective_scan.op import int8_selective_scan

__all__ = ["int8_selective_scan"]
