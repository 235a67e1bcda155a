"""Connections of callers and strangers: places, bounds of time and size, and the loop that serves them."""
