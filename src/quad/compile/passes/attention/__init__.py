"""Rewrites of attention and gated units."""
