"""Looks at a bundle beside a writer that replaces it all the time, and is killed (SIGKILL) at random moments: each meets a whole bundle.

    python -m benchmarks.replace_bundle [--looks 10000] [--seed 0] [--json FILE]

A look opens the bundle and reads every file of it; each tenth also makes a picture under the plan that loads each graph when it is needed.
Right is the old bundle or the new one, whole, and its own picture; a pipeline that was open already may also say that another one came.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.rig.report import command_line, write_report

from quad import QuadPipeline
from quad.core.digests import file_digest
from quad.core.errors import QuadError
from quad.core.manifest import BUNDLE_FILE
from quad.core.storage.directories import new_directory
from quad.core.storage.replaced import identity_of
from quad.runtime.bundle import open_bundle
from tests.runtime.conftest import make_bundle, write_manifest
from tests.runtime.test_bundle_replaced import replace_graph

PICTURE_EACH, LIFE_S = 10, (0.3, 1.5)
TOLD = "another one by now"


def write(final: Path, sources: list[Path]) -> None:
    """Put the bundles at a name, in turns, for ever."""
    while True:
        for source in sources:
            with new_directory(final, BUNDLE_FILE) as stage:
                shutil.copytree(source, stage, dirs_exist_ok=True)


def picture(pipe: QuadPipeline) -> bytes:
    return np.asarray(pipe("it", task="text-to-image", seed=1).images[0]).tobytes()


def opened(root: Path) -> QuadPipeline:
    return QuadPipeline.from_pretrained(root, engine="ort", threads=1, memory="minimal")


def look(root: Path, seals: dict[str, int]) -> str:
    """What one look meets: the number of the bundle that all of its files are of."""
    bundle = open_bundle(root)
    return f"bundle {seals[bundle.manifest.sha256]}, whole"


def look_at_picture(root: Path, seals: dict[str, int], pictures: list[bytes]) -> str:
    """The same, and its picture."""
    pipe = opened(root)
    number = seals[pipe.bundle.manifest.sha256]
    try:
        return "its picture" if picture(pipe) == pictures[number] else "WRONG PICTURE"
    except QuadError as error:
        return "told that another one came" if TOLD in str(error) else f"ERROR {error}"


def run(looks: int, seed: int, folder: Path) -> dict[str, Any]:
    """The whole measurement as a JSON-like object."""
    sources, final = [make_bundle(folder / name) for name in ("one", "two")], folder / "place" / "phone"
    replace_graph(sources[1])
    write_manifest(sources[1])
    seals = {open_bundle(source).manifest.sha256: number for number, source in enumerate(sources)}
    pictures = [picture(opened(source)) for source in sources]
    assert pictures[0] != pictures[1]
    shutil.copytree(sources[0], final)
    draw, met, kills, replaced, seen = random.Random(seed), Counter[str](), 0, 0, None
    writer, until = multiprocessing.Process(), 0.0
    for number in range(looks):
        if time.monotonic() > until:
            if writer.is_alive():
                writer.kill()
                writer.join()
                kills += 1
            writer, until = (
                multiprocessing.Process(target=write, args=(final, sources), daemon=True),
                time.monotonic() + draw.uniform(*LIFE_S),
            )
            writer.start()
        try:
            met[look_at_picture(final, seals, pictures) if number % PICTURE_EACH == 0 else look(final, seals)] += 1
        except (QuadError, OSError) as error:
            met[f"ERROR {type(error).__name__} {str(error).replace(str(folder), '')[:150]}"] += 1
        seen, before = identity_of(final / BUNDLE_FILE), seen
        replaced += seen != before
    writer.kill()
    writer.join()
    with new_directory(final, BUNDLE_FILE) as stage:
        shutil.copytree(sources[0], stage, dirs_exist_ok=True)
    left = sorted(path.name for path in final.parent.iterdir() if path != final)
    whole = all(file_digest(final / name) == entry.sha256 for name, entry in open_bundle(final).manifest.files.items())
    return {"looks": looks, "met": dict(met), "replaced_between_looks": replaced, "kills": kills, "left": left, "whole_at_the_end": whole}


def main() -> int:
    """Print the figures; 1 where a look met anything but a whole bundle, or something was left."""
    parser = command_line(__doc__)
    parser.add_argument("--looks", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="q") as folder:
        facts = run(options.looks, options.seed, Path(folder))
    write_report(options.json, facts)
    print(json.dumps(facts, indent=2))
    wrong = any(word.startswith(("ERROR", "WRONG")) for word in facts["met"])
    return 1 if wrong or facts["left"] or not facts["whole_at_the_end"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
