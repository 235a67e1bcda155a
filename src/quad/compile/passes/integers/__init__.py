"""Rewrites around quantized values: folded Q/DQ pairs, integer kernels, split biases."""
