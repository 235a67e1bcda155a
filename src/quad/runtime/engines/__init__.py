"""Engines: what executes a graph, and which graphs are in memory."""
