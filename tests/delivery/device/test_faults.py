"""The disk fails, the process is killed, rights are gone, at random: nothing good is deleted, old or new runs, a repeat works."""

from __future__ import annotations

import os

import pytest

from tests.delivery.faults import Bench

FOUND = (260, 380)  # an unreadable directory of pointers, while it is updated


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the work is done in a fork")
def test_what_must_hold_after_a_fault_does(tmp_path_factory: pytest.TempPathFactory) -> None:
    """`python -m benchmarks.delivery_faults` tries 2,000."""
    home = tmp_path_factory.mktemp("faults")
    if os.geteuid() == 0:  # the child that gives up root's powers goes through these
        for folder in (home, *home.parents[:2]):
            folder.chmod(0o755)
    bench = Bench(home)
    for seed in (*range(40), *FOUND):
        bench.run(seed)
    assert bench.result.wrong == []
    assert {"done", "refused", "killed"} <= bench.result.told.keys()
