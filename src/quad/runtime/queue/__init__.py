"""Requests of several clients on one pipeline."""
