"""The page in a real browser over a small bundle: tests/studio of the JavaScript package, beside a server of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from quad.core.manifest import LatentPreview
from quad.core.storage.pack import write_pack
from tests.runtime.conftest import write_manifest

PACKAGE = Path(__file__).resolve().parents[3] / "js"
RUNNER = PACKAGE / "node_modules/vitest/vitest.mjs"
CHROMIUM = shutil.which(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
IS_THERE = shutil.which("node") is not None and RUNNER.is_file() and (PACKAGE / "node_modules/playwright-core").is_dir()

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or not IS_THERE, reason="no Chromium, or no packages of js/: apt install chromium, make js"
)


@pytest.fixture
def files(tmp_path: Path, ink: Any) -> dict[str, str]:
    """What the walks open: a picture whose corner has a known colour, and two packs of one adapter."""
    pixels = np.full((16, 24, 3), (10, 200, 30), np.uint8)
    pixels[4:12, 8:16] = (200, 40, 10)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    manifest, tensors = ink
    packs = [tmp_path / "1.qpack", tmp_path / "2.qpack"]
    for pack, divisor in zip(packs, (1, 2), strict=True):
        write_pack(pack, manifest, {name: array // divisor for name, array in tensors.items()})
    return {"QUAD_STUDIO_PICTURE": str(tmp_path / "picture.png"), "QUAD_STUDIO_PACKS": ":".join(map(str, packs))}


@pytest.fixture
def address(bundle_copy: Path, tmp_path: Path) -> Iterator[str]:
    """`quad studio` as a process of its own: the address that it prints."""
    write_manifest(bundle_copy, preview=LatentPreview(((0.1,) * 4,) * 3, (0.0, 0.1, -0.1)))
    report = tmp_path / "report"
    report.mkdir()
    names = ["transform", "removal", "sketch"]
    table = {"names": names, "scores": [[0.0, 0.5, 1.0], [0.25, 0.0, 2e-5], [1.0, 1.0, 0.0]]}
    (report / "ablate.json").write_text(json.dumps({"cross_table": table}), "utf-8")
    (report / "report.html").write_text("<style></style>", "utf-8")
    options = ["--allow-uploads", "--report", str(report), "--max-steps", "1000", "--threads", "1", "--json"]
    command = [sys.executable, "-m", "quad", "studio", str(bundle_copy), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["page"]
        finally:
            process.terminate()


def test_people_walk_the_page(address: str, files: dict[str, str]) -> None:
    environment = {**os.environ, **files, "QUAD_STUDIO": address, "CHROMIUM": str(CHROMIUM)}
    command = ["node", RUNNER, "run", "test/studio"]
    done = subprocess.run(command, cwd=PACKAGE, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    assert "skipped" not in done.stdout
