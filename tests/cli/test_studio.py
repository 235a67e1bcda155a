"""`quad studio` as it is called: what is wrong is told before anything is opened. How the page is served is in tests/serve/studio."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quad.cli.main import app


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ([], 2, "BUNDLE"),
        (["phone", "--adapter", "ink=ink.safetensors"], 2, "expected --against with them"),
        (["phone", "--vae", "vae"], 2, "expected --against with them"),
        (["phone", "--against", "model", "--adapter", "ink"], 2, "--adapter: expected NAME=PATH"),
        (["phone", "--port", "70000"], 2, "--port"),
        (["phone", "--embedding", "cat="], 2, "--embedding: expected NAME=FILE"),
        (["nowhere"], 1, "nowhere"),
    ],
)
def test_a_wrong_call_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], code: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    done = CliRunner().invoke(app, ["studio", *options])
    assert (done.exit_code, done.stdout) == (code, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if not path.is_dir()]


def test_the_process_of_the_float_model_is_named_without_loading_torch() -> None:
    lines = (
        "import json, sys",
        "from pathlib import Path",
        "from quad.cli.studio import _reference_command",
        "words = _reference_command(Path('phone'), 'toyland', ['ink=ink.safetensors'], Path('vae'))",
        "print(json.dumps([words, 'torch' in sys.modules]))",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    (python, *words), has_torch = json.loads(done.stdout)
    here = Path.cwd()
    files = ["--adapter", f"ink={here / 'ink.safetensors'}", "--vae", str(here / "vae")]
    assert words == ["-m", "quad.evaluate.full_precision", str(here / "phone"), "toyland", *files]
    assert (python, has_torch) == (sys.executable, False)
