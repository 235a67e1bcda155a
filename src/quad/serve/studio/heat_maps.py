"""Tables of adapters by adapters: how far their outputs are apart, and what each loses to the others' ranges where that was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from quad.core.errors import InputError, mismatch
from quad.core.manifest import Golden
from quad.core.storage.reading import reading_from

ABLATION_FILE: Final = "ablate.json"
_DIGITS = 4


class HeatMap(msgspec.Struct, frozen=True, kw_only=True):
    """A table with a colour for each cell.

    Args:
        note: what a cell is, one sentence.
        names: of rows and columns.
        values: row by row; null where nothing is known.
    """

    title: str
    note: str
    names: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


class _CrossTable(msgspec.Struct, frozen=True):
    names: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]


class _Ablation(msgspec.Struct, frozen=True):
    """The part of `ablate.json` that is shown."""

    cross_table: _CrossTable | None = None


def distances(golden: Mapping[str, Golden]) -> HeatMap | None:
    """How far adapters' outputs on one stored call are apart: RMS of the difference over the RMS of the row's own; None for fewer than 2.

    Args:
        golden: adapter -> its golden output. Of those on another call than the first one's nothing is known.
    """
    if len(golden) < 2:
        return None
    rows = tuple(tuple(_distance(own, other) for other in golden.values()) for own in golden.values())
    return HeatMap(
        title="How different the adapters are",
        note="RMS of the difference between two adapters' outputs on one stored call of the U-Net, over the RMS of the row's own output.",
        names=tuple(golden),
        values=rows,
    )


def _distance(own: Golden, other: Golden) -> float | None:
    if own.probe != other.probe or len(own.values) != len(other.values):
        return None
    x, y = np.asarray(own.values), np.asarray(other.values)
    scale = float(np.sqrt(np.mean(x**2)))
    return round(float(np.sqrt(np.mean((x - y) ** 2))) / scale, _DIGITS) if scale > 0 else None


def cross_table(report: Path) -> HeatMap | None:
    """The damage of each adapter under each other's ranges, as `quad ablate` has measured it; None where its file is not there.

    Args:
        report: the directory with `ablate.json`.

    Raises:
        InputError: the file is none.
    """
    file = report / ABLATION_FILE
    if not file.is_file():
        return None
    with reading_from(file):
        data = file.read_bytes()
    try:
        table = msgspec.json.decode(data, type=_Ablation).cross_table
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(mismatch(str(file), "figures of quad ablate", f"something else ({error})", "measure them again")) from error
    if table is None or not _is_square(table.names, table.scores):
        return None
    return HeatMap(
        title="What each adapter loses to another's ranges",
        note="Paired-Gaussian divergence from full precision (QSS) of the row's adapter under the ranges of the column's; less is better.",
        names=table.names,
        values=table.scores,
    )


def _is_square(names: Sequence[str], rows: Sequence[Sequence[float]]) -> bool:
    return len(names) == len(rows) and all(len(row) == len(names) for row in rows)
