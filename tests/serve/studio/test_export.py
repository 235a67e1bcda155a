"""An exported page: whole or not there, every file pinned, nothing inline, and walked in a browser where there is one."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from quad.core.errors import InputError, UnsupportedError
from quad.serve.studio.export import export_page
from quad.serve.studio.files import DEVICE, PAGE
from tests.runtime.conftest import HIDDEN, LENGTH, htp_bundle, write_manifest  # noqa: F401

JS = Path(__file__).resolve().parents[3] / "js"
RUNNER = JS / "node_modules/vitest/vitest.mjs"


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A runtime for pages that does nothing."""
    folder = tmp_path / "device"
    folder.mkdir()
    for name in ("runtime.js", "worker.js", "engine.wasm"):
        (folder / name).write_text(name, "utf-8")
    return folder


def _pinned(folder: Path, script: str) -> Mapping[str, Mapping[str, str]]:
    found = re.search(r"^const PINNED = (\{.*\});$", (folder / script).read_text("utf-8"), re.MULTILINE)
    assert found is not None
    return json.loads(found[1])  # type: ignore[no-any-return]


def _integrity(path: Path) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()}"


def test_every_file_of_the_page_is_pinned(tiny_bundle: Path, device: Path, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    files = export_page(tiny_bundle, folder, device=device)
    assert files == {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    own = {name for name in files if not name.startswith("bundle/")}
    worker, start = _pinned(folder, "sw.js"), _pinned(folder, "start.js")
    assert set(worker) == own - {"sw.js"}
    assert set(start) == own - {"sw.js", "start.js", "index.html"}
    for name, pin in [*worker.items(), *start.items()]:
        assert pin["integrity"] == _integrity(folder / name), name
    assert own >= {path.name for path in PAGE.iterdir() if path.name != "device"}
    assert json.loads((folder / "studio.json").read_bytes()) == {"server": False, "device": {"runtime": "device/", "bundle": "bundle/"}}
    for path in tiny_bundle.rglob("*"):
        assert path.is_dir() or (folder / "bundle" / path.relative_to(tiny_bundle)).read_bytes() == path.read_bytes()


def test_the_document_has_the_policy_and_one_script_with_its_digest(tiny_bundle: Path, device: Path, tmp_path: Path) -> None:
    export_page(tiny_bundle, tmp_path / "site", device=device)
    text = (tmp_path / "site/index.html").read_text("utf-8")
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', text)
    assert policy is not None
    assert "default-src &#x27;none&#x27;" in policy[1]
    assert "frame-ancestors" not in policy[1]
    assert re.findall(r"<script([^>]*)>(.*?)</script>", text, re.DOTALL) == [
        (f' type="module" src="start.js" integrity="{_integrity(tmp_path / "site/start.js")}"', "")
    ]
    for link in re.findall(r'<link rel="stylesheet"[^>]*>', text):
        assert 'integrity="sha256-' in link


def test_an_export_replaces_an_older_one_and_nothing_else(tiny_bundle: Path, device: Path, tmp_path: Path) -> None:
    export_page(tiny_bundle, tmp_path / "site", device=device)
    (tmp_path / "site/old.js").write_text("", "utf-8")
    assert "old.js" not in export_page(tiny_bundle, tmp_path / "site", device=device)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("", "utf-8")
    with pytest.raises(InputError, match=r"expected a new directory or one with studio\.json, .* choose another --export"):
        export_page(tiny_bundle, tmp_path / "mine", device=device)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_what_no_browser_runs_is_refused(tiny_bundle: Path, htp_bundle: Path, device: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(UnsupportedError, match=r"--export: expected a bundle that ONNX Runtime runs, found one for .*--target cpu"):
        export_page(htp_bundle, tmp_path / "site", device=device)
    with pytest.raises(UnsupportedError, match=r"expected the runtime for pages, found none in this install; run make js"):
        export_page(tiny_bundle, tmp_path / "site", device=tmp_path / "none")
    assert not (tmp_path / "site").exists()


@pytest.mark.skipif(shutil.which("node") is None or not RUNNER.is_file() or not DEVICE.is_dir(), reason="no Node, or not built: make js")
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium")
def test_a_static_host_serves_it_to_a_phone(tiny_bundle: Path, tmp_path: Path) -> None:
    export_page(tiny_bundle, tmp_path / "site")
    environment = {**os.environ, "QUAD_TEST_EXPORT": str(tmp_path / "site")}
    command = ["node", RUNNER, "run", "test/export.test.ts"]
    done = subprocess.run(command, cwd=JS, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
