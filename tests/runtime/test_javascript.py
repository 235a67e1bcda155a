"""The JavaScript runtime beside this one, on the tiny bundles: in Node, and where there is one in Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from quad.runtime.conformance import record_vectors
from quad.runtime.pipeline import QuadPipeline
from tests.runtime.conftest import write_manifest
from tests.runtime.javascript_reference import write_reference

PACKAGE = Path(__file__).resolve().parents[2] / "js"
RUNNER = PACKAGE / "node_modules/vitest/vitest.mjs"
TESTS = ("test/beside_python.test.ts", "test/delivery.test.ts", "test/pipeline.test.ts")

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or not RUNNER.is_file(), reason="no Node, or its packages are not installed: make js"
)


@pytest.mark.parametrize("given", ["tiny_bundle", "normalised_bundle", "sized_bundle"])
def test_node_computes_what_python_does(given: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    bundle, reference = Path(shutil.copytree(request.getfixturevalue(given), tmp_path / "phone")), tmp_path / "reference"
    reference.mkdir()
    pipe = QuadPipeline.from_pretrained(bundle, engine="ort", threads=1)
    for name, content in record_vectors(pipe).files().items():
        (bundle / name).write_bytes(content)
    write_manifest(bundle, parents=dict(pipe.bundle.manifest.parents), text=pipe.bundle.manifest.text)
    write_reference(bundle, reference)
    environment = {**os.environ, "QUAD_TEST_BUNDLE": str(bundle), "QUAD_TEST_REFERENCE": str(reference)}
    in_browser = ["test/chromium.test.ts", "test/device_backend.test.ts"] if given == "tiny_bundle" and shutil.which("chromium") else []
    command = ["node", RUNNER, "run", *TESTS, *in_browser]
    done = subprocess.run(command, cwd=PACKAGE, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
