"""A fixed number of threads for every sum, whatever the machine has: a bundle can then be made again elsewhere, byte for byte.

A sum of floats depends on its order, and libraries deal a sum to as many threads as there are. What is independent runs side by side
instead, and is put together in its own order (`quad.quantize.observe.side_by_side`).

Source: docs/adr/0023-one-thread-a-sum.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from quad.runtime.fixed_threads import fixed_threads as fixed_numpy_threads


@contextmanager
def fixed_threads(threads: int = 1) -> Iterator[None]:
    """While the block runs, torch, NumPy and SciPy deal a sum to so many threads; then to as many as before.

    A GPU multiplies whole float32 numbers meanwhile, in convolutions too: torch lets those drop 13 bits (TF32).
    """
    before, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    with fixed_numpy_threads(threads):
        torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            torch.set_num_threads(before)
            torch.backends.cudnn.allow_tf32 = tf32
