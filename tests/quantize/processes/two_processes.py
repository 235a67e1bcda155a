"""One process of a piece of shared work, as often as the launcher starts it: `python -m tests.quantize.processes.two_processes DIRECTORY`.

Every process leaves `RANK.json`: what it was given.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from quad.core.errors import InputError, QuadError
from quad.core.processes import is_main, process_count, process_number
from quad.quantize.processes import meeting
from quad.quantize.processes.dealt import ARRAYS, PACKED, dealt, from_each, json_codec, shared

VALUES = [0.1 * number - 0.4 for number in range(9)]
LARGE = 3 * 2**20  # floats: more than one message of the store holds
FAILS = 5


def failing(number: int) -> int:
    if number >= FAILS:
        raise InputError(f"piece {number} is bad")
    return number


def said(work: Any) -> str:
    try:
        work()
    except QuadError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(directory: Path) -> None:
    rank = int(os.environ["RANK"])
    drawn: list[float] = []

    def third(value: float) -> float:
        drawn.append(value)
        time.sleep(0.02)
        return value / 3

    def alone() -> dict[str, Any]:
        return {"count": process_count(), "number": process_number(), "by": rank}

    facts: dict[str, Any] = {"number": process_number(), "count": process_count(), "main": is_main()}
    facts["thirds"] = list(dealt(third, VALUES, json_codec(float)))
    facts["drawn"] = drawn
    facts["nothing"] = list(dealt(third, [], json_codec(float)))
    facts["failed"] = said(lambda: list(dealt(failing, range(8), json_codec(int), at_once=2)))
    facts["shared"] = shared(alone, json_codec(dict[str, int]))
    facts["shared_failed"] = said(lambda: shared(lambda: failing(FAILS), json_codec(int)))
    facts["none"] = shared(lambda: None, PACKED) is None
    facts["each"] = from_each(rank, json_codec(int))
    (large,) = dealt(lambda seed: {"x": np.random.default_rng(seed).standard_normal(LARGE)}, [7], ARRAYS)
    facts["large"] = bool((large["x"] == np.random.default_rng(7).standard_normal(LARGE)).all())
    (directory / f"{rank}.json").write_text(json.dumps(facts))
    meeting.PATIENCE_SECONDS = meeting.SIGN_SECONDS = 0.5
    if rank:
        os._exit(9)  # as the system kills one
    facts["killed"] = said(lambda: from_each(rank, json_codec(int)))
    (directory / f"{rank}.json").write_text(json.dumps(facts))
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
