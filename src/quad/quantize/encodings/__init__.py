"""Encodings: ranges, rules, fake quantization, adapters as integers."""
