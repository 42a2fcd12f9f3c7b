"""Benchmarks of kernels and models: always a ratio of two calls measured in turn in one run."""
