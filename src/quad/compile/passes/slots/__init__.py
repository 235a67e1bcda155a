"""Rewrites of what a slot adds to its layer."""
