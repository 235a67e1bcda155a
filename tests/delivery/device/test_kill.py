"""kill -9 at any point of an install, an update, a rollback or a publish: the old state or the new one, whole, and nothing left over."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.delivery.killing import PUBLISHING, WORK
from tests.delivery.simulator import World, make_pack

ROOT = Path(__file__).parents[3]
# Points spread over the operation, beside those around the step that commits it.
POINTS = {"install": 30, "update": 35, "rollback": 20, "add": 8, "revoke": 8, "rotate": 10}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world with versions 1 to 3 on offer, and the state that each operation begins with."""
    world = World(tmp_path_factory.mktemp("kill"))
    for seed in (1, 2, 3):
        world.add(seed)
    (world.home / "parents.json").write_text(json.dumps(world.parents))
    make_pack(world.home / "new.qpack", 4)
    before = world.home / "before"
    world.device().fetch()
    shutil.copytree(world.store, world.home / "known")
    for operation in PUBLISHING:
        for part in ("repo", "keys"):
            shutil.copytree(world.home / part, before / operation / part)
    shutil.copytree(world.store, before / "install/store")
    world.install("ink:1")
    world.install("ink:2")
    for operation in ("update", "rollback"):
        shutil.copytree(world.store, before / operation / "store")
    return world.home


@pytest.mark.parametrize("operation", list(WORK))
def test_a_killed_operation_leaves_the_old_or_the_new(home: Path, operation: str) -> None:
    require_old_or_new(home, operation, POINTS[operation], seed=0)


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("operation", list(WORK))
def test_more_points(home: Path, operation: str, seed: int) -> None:
    require_old_or_new(home, operation, 10 * POINTS[operation], seed)


def require_old_or_new(home: Path, operation: str, points: int, seed: int) -> None:
    command = [sys.executable, "-m", "tests.delivery.killing", str(home), operation, str(points), str(seed)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["wrong"] == []
    assert result["kills"] >= result["points"] * 0.9  # the others came to their end before chance struck
    assert result["old"] + result["new"] == result["points"]
    assert result["old"] > 0
    assert result["new"] > 0
