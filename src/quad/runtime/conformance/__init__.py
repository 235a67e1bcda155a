"""Conformance vectors: what a bundle's numbers are, so that any runtime can show that it computes them. See docs/formats.md."""

from quad.runtime.conformance.record import record_vectors
from quad.runtime.conformance.vectors import ConformanceVectors, read_vectors
from quad.runtime.conformance.verify import Check, verify

__all__ = ["Check", "ConformanceVectors", "read_vectors", "record_vectors", "verify"]
