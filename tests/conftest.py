"""For all tests: no network, one thread where a library asks, and no deadlines that a busy machine could miss."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")

settings.register_profile("quad", deadline=None, derandomize=True)
settings.load_profile("quad")
