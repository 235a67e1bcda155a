"""Adapters on the device: files, memory, weighted sums."""
