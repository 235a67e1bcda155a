"""Rewrites of transposes, reshapes and the layout of tokens."""
