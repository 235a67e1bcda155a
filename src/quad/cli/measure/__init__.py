"""Verbs that measure a bundle or check it."""
