"""The vocabulary of quantization: grids of integers, granularity of scales, rotations, widths in bits."""
