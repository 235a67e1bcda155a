"""Weights of 4 bits: which layers get them, and what mends their error."""
