"""The N x N table on the tiny model: one row and one column an adapter, and nobody is better off than with what is its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from quad.evaluate.ablation.cross_table import measure_cross_table


def test_every_adapter_is_scored_under_every_encoding(model_dir: Path, adapter_files: dict[str, Path]) -> None:
    names = ("portrait", "sketch")
    table = measure_cross_table(model_dir, {name: adapter_files[name] for name in names})
    scores = np.array(table.scores)
    assert table.names == names
    assert scores.shape == (2, 2)
    assert (scores > 0).all()
    # Own encodings are chosen on other calls than these: a small win of another's is luck, a large one a swapped axis.
    assert (scores >= 0.5 * np.diag(scores)[:, None]).all()
