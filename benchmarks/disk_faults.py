"""Random faults of the disk while quad works: one call fails with an errno, or all from there on do, or the process is killed there.

    python -m benchmarks.disk_faults [--faults 2000] [--seed 0] [--json FILE]

Operations: `run` writes a picture, `build` puts a bundle in the place of one, `publish` offers a pack. Each is done in a child that has no
rights but its own, half of the time with a directory of random permissions. Afterwards the old thing is there whole, or the new one, what
nobody was to touch is untouched, and the error was one of quad's; with the permissions mended a repeat works and leaves no stray.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rig.report import command_line, write_report
from PIL import Image

from quad.cli.run import run as quad_run
from quad.core.errors import QuadError
from quad.core.manifest import BUNDLE_FILE
from quad.core.storage.directories import new_directory
from quad.core.storage.files import write_bytes
from quad.delivery.publisher.keys import Keys
from quad.delivery.publisher.repository import Repository
from quad.runtime.bundle import open_bundle
from tests.delivery.simulator import PASSWORD, TERMS, World, make_pack
from tests.runtime.conftest import make_bundle, write_manifest
from tests.runtime.test_bundle_replaced import replace_graph

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, 0)  # 0: killed
MODES = (0o000, 0o300, 0o500, 0o555, 0o700)
NOBODY = 65534
MARK = "/df/"
CASES = {"run": 900, "build": 700, "publish": 400}
Tree = dict[str, bytes]


def tree(folder: Path) -> Tree:
    """Every file of a directory, by its path in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@dataclass
class Operation:
    """One thing that quad does.

    Args:
        place: all that it may touch, made anew by `reset`.
        work: in the child.
        states: gives what is there, old or new, or a word for what must not be.
        strays: names that were to go.
    """

    place: Path
    reset: Callable[[], None]
    work: Callable[[], object]
    state: Callable[[], str]
    strays: Callable[[], list[str]]


@dataclass
class Tally:
    """What came of the faults."""

    answers: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def operations(home: Path) -> dict[str, Operation]:
    """The three, on a bundle and a repository of a few kilobytes."""
    bundles = [make_bundle(home / name) for name in ("old", "new")]
    replace_graph(bundles[1])
    write_manifest(bundles[1])
    return {"run": _run(home, bundles[0]), "build": _build(home, bundles), "publish": _publish(home)}


def _hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def _run(home: Path, bundle: Path) -> Operation:
    place = home / "df/run"
    picture = place / "out/picture.png"

    def reset() -> None:
        _empty(place)
        shutil.copytree(bundle, place / "phone")
        picture.parent.mkdir()
        picture.write_bytes(b"old")

    def work() -> None:
        quad_run(place / "phone", "text-to-image", picture, prompt="it", seed=1, engine="ort")

    def state() -> str:
        if tree(place / "phone") != tree(bundle):
            return "THE BUNDLE CHANGED"
        if not picture.is_file():
            return "NOTHING"
        data = picture.read_bytes()
        return "old" if data == b"old" else "new" if Image.open(picture).size == (16, 16) and data.endswith(b"IEND\xaeB`\x82") else "HALF"

    return Operation(place, reset, work, state, lambda: _hidden(picture.parent))


def _build(home: Path, bundles: list[Path]) -> Operation:
    place = home / "df/build"
    final, trees = place / "out/phone", [tree(bundle) for bundle in bundles]

    def reset() -> None:
        _empty(place)
        shutil.copytree(bundles[0], final)

    def work() -> None:
        """As `write_bundle` does it: each file by the writer, the directory by an exchange."""
        with new_directory(final, BUNDLE_FILE) as stage:
            for name, data in trees[1].items():
                write_bytes(stage / name, data)

    def state() -> str:
        if not final.is_dir():
            return "NOTHING"
        open_bundle(final)
        return {0: "old", 1: "new"}.get(trees.index(tree(final)) if tree(final) in trees else 2, "A MIX")

    return Operation(place, reset, work, state, lambda: _hidden(final.parent))


def _publish(home: Path) -> Operation:
    place = home / "df/publish"
    world = World(home / "world")
    world.add(1)
    pack = make_pack(home / "second.qpack", 2)
    before = tree(home / "world/repo")

    def reset() -> None:
        _empty(place)
        for name in ("repo", "keys"):
            shutil.copytree(home / "world" / name, place / name)
        shutil.copy(pack, place / pack.name)

    def work() -> None:
        try:
            Repository(place / "repo", Keys(place / "keys", PASSWORD)).add([place / pack.name], TERMS)
        except QuadError as error:
            if "on offer as" not in str(error):
                raise

    def state() -> str:
        files = tree(place / "repo")
        if any(files.get(name) != data for name, data in before.items() if name != "metadata/timestamp.json"):
            return "SOMETHING GOOD IS GONE"
        shutil.rmtree(world.server, ignore_errors=True)
        shutil.copytree(place / "repo", world.server)
        shutil.rmtree(world.store, ignore_errors=True)
        return {1: "old", 2: "new"}[world.install()]

    return Operation(place, reset, work, state, lambda: [path for path in tree(place / "repo") if path.endswith(".part")])


def _empty(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)


def _own(place: Path, modes: dict[Path, int]) -> None:
    """Everything is the child's, and may be read and written, but for some directories."""
    for path in (place, *place.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        path.chmod(0o700 if path.is_dir() else 0o600)
    for path, mode in modes.items():
        path.chmod(mode)


def attempt(operation: Operation, at: int, error: int, all_later: int, library: Any) -> tuple[int, str]:
    """Do it in a child: how many calls it made, and what it said."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        for change in (lambda: os.setgroups([]), lambda: os.setgid(NOBODY), lambda: os.setuid(NOBODY)):
            change()
        library.fault_arm(ctypes.c_long(at), error, all_later)
        try:
            operation.work()
            answer = "done"
        except QuadError as told:
            answer = f"{type(told).__name__}: {told}"
        except BaseException as fault:
            answer = f"FAULT {type(fault).__name__}: {fault}"
        count = library.fault_count()
        library.fault_arm(ctypes.c_long(0), 0, 0)
        os.write(writer, f"{count}|{answer}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        count_text, _, answer = stream.read().partition("|")
    os.waitpid(child, 0)
    return int(count_text or 0), answer or "killed"


def one_fault(name: str, operation: Operation, steps: int, draw: random.Random, tally: Tally, library: Any) -> None:
    """One fault, what is there afterwards, and the repeat."""
    operation.reset()
    folders = [path for path in (operation.place, *operation.place.rglob("*")) if path.is_dir()]
    modes = {draw.choice(folders): draw.choice(MODES)} if draw.random() < 0.5 else {}
    error, at, all_later = draw.choice(ERRORS), draw.randint(1, steps), draw.randrange(2)
    _own(operation.place, modes)
    _, answer = attempt(operation, at, error, all_later, library)
    _own(operation.place, {})
    where = f"{name}, {errno.errorcode.get(error, 'kill')} at {at}{' and later' if all_later else ''}, {modes}: {answer}"

    def state() -> str:
        try:
            return operation.state()
        except Exception as broken:
            return f"BROKEN {broken}"

    after = state()
    _, again = attempt(operation, 0, 1, 0, library)
    tally.answers[answer.partition(":")[0]] += 1
    tally.states[after if after in ("old", "new") else "other"] += 1
    if answer.startswith("FAULT") or after not in ("old", "new") or (answer == "done" and after != "new"):
        tally.problems.append(f"{where}; then {after}")
    if again != "done" or state() != "new" or operation.strays():
        tally.problems.append(f"{where}; repeated: {again}, {state()}, left {operation.strays()}")


def measure(cases: dict[str, int], seed: int, home: Path) -> dict[str, Any]:
    """The whole measurement as a JSON-like object."""
    library, draw = ctypes.CDLL(None), random.Random(seed)
    library.fault_count.restype = ctypes.c_long
    Image.init()
    home.chmod(0o755)
    report: dict[str, Any] = {}
    for name, operation in operations(home).items():
        operation.reset()
        operation.work()  # which imports what a child may not read
        operation.reset()
        _own(operation.place, {})
        (home / "df").chmod(0o755)
        steps, answer = attempt(operation, 0, 1, 0, library)
        assert answer == "done", answer
        tally = Tally()
        for _ in range(cases[name]):
            one_fault(name, operation, steps, draw, tally, library)
        counts = {"calls": steps, "faults": cases[name], "answers": dict(tally.answers), "states": dict(tally.states)}
        print(json.dumps({name: {**counts, "problems": len(tally.problems)}}), flush=True)
        report[name] = {**counts, "problems": tally.problems}
    return report


def main() -> int:
    """Print the figures; 1 where something good was lost, half was there, or a repeat did not work."""
    parser = command_line(__doc__)
    parser.add_argument("--faults", type=int, default=sum(CASES.values()), help="of all three together")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="q") as folder:
        if "FAULT_UNDER" not in os.environ:  # once more, with the library that makes the faults
            library = Path(folder) / "fault.so"
            subprocess.run(["cc", "-shared", "-fPIC", "-o", library, Path(__file__).parent / "rig/fault.c", "-ldl"], check=True)
            words = [sys.executable, "-m", "benchmarks.disk_faults", *sys.argv[1:]]
            return subprocess.run(words, env={**os.environ, "LD_PRELOAD": str(library), "FAULT_UNDER": MARK}, check=False).returncode
        cases = {name: max(1, options.faults * count // sum(CASES.values())) for name, count in CASES.items()}
        facts = measure(cases, options.seed, Path(folder))
    write_report(options.json, facts)
    problems = [problem for each in facts.values() for problem in each["problems"]]
    print("\n".join(problems[:20]) or "nothing good was lost, old or new, and every repeat worked")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
