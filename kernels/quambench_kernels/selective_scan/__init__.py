"""Mamba's selective scan, with its step sizes' softplus before it and its gate after it."""

from quambench_kernels.selective_scan.op import selective_scan

__all__ = ["selective_scan"]
