"""Rows that were measured, as they are kept and travel: a run that was killed goes on where it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from quad.core.digests import digest
from quad.core.errors import InputError, mismatch
from quad.evaluate.ablation.later import STRENGTHS
from quad.evaluate.ablation.plan import AblationRow
from quad.evaluate.ablation.reference_side import ReferenceSide
from quad.evaluate.ablation.request import AblationRequest
from quad.evaluate.ablation.results import StoredRow, StoredRows
from quad.evaluate.figures.effect import CALLS_OF_RUN
from quad.evaluate.figures.identity import adapter_identities
from quad.evaluate.figures.runs import Pictures
from quad.quantize.processes.dealt import Codec

ROWS_FILE = "rows.json"


@dataclass(frozen=True)
class MeasuredRow:
    """A row, and the pictures of it that are kept, by file below `pictures`."""

    row: StoredRow
    pictures: Mapping[str, Pictures]


ROW = Codec[MeasuredRow](
    lambda measured: (msgspec.to_builtins(measured.row), measured.pictures),
    lambda packed: MeasuredRow(msgspec.convert(packed[0], StoredRow), packed[1]),
)


def read_rows(file: Path) -> dict[str, StoredRow]:
    """Rows measured before, by name.

    Raises:
        InputError: the file is not one of ours.
    """
    if not file.is_file():
        return {}
    try:
        return {row.name: row for row in msgspec.json.decode(file.read_bytes(), type=StoredRows).rows}
    except msgspec.MsgspecError as error:
        raise InputError(mismatch(str(file), "rows of an earlier run", "something else", "remove it or choose another -o")) from error


def row_key(request: AblationRequest, reference: ReferenceSide, row: AblationRow) -> str:
    """Digest of everything that a row's figures depend on."""
    options = {
        "build": dict(row.build),
        "quality": dict(row.quality),
        "own": row.per_adapter,
        "made": row.synthetic,
        "target": request.target,
        **({"later": adapter_identities(request.later), "strengths": STRENGTHS} if row.later else {}),
    }
    return digest({"model": reference.digest, "adapters": reference.adapter_digests, "n": request.n, "calls": CALLS_OF_RUN, "row": options})
