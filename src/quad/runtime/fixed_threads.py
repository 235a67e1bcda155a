"""A fixed number of threads for NumPy's sums, whatever the machine has; see `quad.build.fixed_threads`, which adds torch's.

Source: docs/adr/0023-one-thread-a-sum.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

ENGINE_THREADS = 1  # of an engine whose answers are stored: golden outputs, measured quality


@contextmanager
def fixed_threads(threads: int = 1) -> Iterator[None]:
    """While the block runs, the libraries behind NumPy deal a sum to so many threads; then to as many as before."""
    with threadpool_limits(limits=threads):
        yield
