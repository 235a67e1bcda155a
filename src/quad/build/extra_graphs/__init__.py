"""Graphs that a build makes by choice, beside the four that every bundle has."""
