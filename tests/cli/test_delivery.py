"""From `quad publish init` to `quad rollback`, as an operator and a device would type it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from quad.cli.main import app
from quad.core.storage.install_pointers import read_installed
from quad.core.storage.pack import write_pack
from tests.runtime.conftest import adapter_manifest, adapter_tensors

RUNNER = CliRunner()
PASSWORD = {"QUAD_PASSWORD": "a password of tests"}


def _quad(*arguments: object, code: int = 0) -> Any:
    """What `--json` prints, or the one line of an error."""
    done = RUNNER.invoke(app, [*map(str, arguments), "--json"], env=PASSWORD)
    assert done.exit_code == code, done.output
    if code:
        assert done.stdout == ""
        return done.stderr.splitlines()[-1]
    return json.loads(done.stdout)


def _pack(path: Path, seed: int, broken: bool = False) -> Path:
    tensors = adapter_tensors(seed, 2)
    if broken:  # integers of another slot table under the names of this one
        tensors = {name: array[..., :1].copy() for name, array in tensors.items()}
    write_pack(path, adapter_manifest("ink", 2), tensors)
    return path


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository with one pack for the tiny bundle."""
    made = _quad("publish", "init", tmp_path / "repo", "--keys", tmp_path / "keys")
    assert made["root"] == str(tmp_path / "repo/metadata/1.root.json")
    _quad("publish", "add", tmp_path / "repo", _pack(tmp_path / "one.qpack", 1), "--keys", tmp_path / "keys")
    return tmp_path / "repo"


def test_the_whole_way(repo: Path, bundle_copy: Path, tmp_path: Path) -> None:
    keys, store = ("--keys", tmp_path / "keys"), tmp_path / "phone.adapters"
    first = ("--url", repo, "--root", repo / "metadata/1.root.json")
    assert _quad("install", bundle_copy, "ink", *first) == {
        "store": str(store),
        "installed": [{"name": "ink", "version": 1, "previous": None, "switched": True}],
        "changes": [],
    }
    assert read_installed(store)["ink"].read_bytes() == (tmp_path / "one.qpack").read_bytes()
    added = _quad("publish", "add", repo, _pack(tmp_path / "two.qpack", 2), *keys, "--runtime", "0.1..2", "--min-ram", "1MB")
    terms = added["offers"][0]["terms"]
    assert (terms["version"], terms["at_least"], terms["below"], terms["min_ram_bytes"]) == (2, "0.1", "2", 10**6)
    fetched = _quad("fetch", bundle_copy, "ink")
    assert (fetched["fetched"][0]["version"], fetched["adapters"][0]["installed"]) == (2, 1)
    assert _quad("install", bundle_copy, "ink")["installed"][0]["version"] == 2
    assert _quad("rollback", bundle_copy, "ink")["installed"][0] == {"name": "ink", "version": 1, "previous": 2, "switched": True}
    assert _quad("publish", "revoke", repo, "ink:1", *keys, "--reason", "faded")["revoked"][0]["version"] == 1
    assert _quad("fetch", bundle_copy)["changes"] == [{"name": "ink", "was": 1, "now": 2, "why": "revoked: faded"}]
    listed = _quad("list", bundle_copy)["adapters"]
    assert listed == [{"name": "ink", "installed": 2, "previous": None, "offered": {"2": ""}, "revoked": {"1": "faded"}}]
    assert "version 1 revoked: faded" in _quad("install", bundle_copy, "ink:1", code=3)
    assert _quad("publish", "rotate", repo, "root", "timestamp", *keys) == {"root": 2, "roles": ["root", "timestamp"]}
    assert _quad("publish", "refresh", repo, *keys)["signed"] == ["timestamp"]
    assert not _quad("install", bundle_copy, "ink")["installed"][0]["switched"]


def test_people_read_lines(repo: Path, bundle_copy: Path) -> None:
    install = ["install", str(bundle_copy), "ink", "--url", str(repo), "--root", str(repo / "metadata/1.root.json")]
    done = RUNNER.invoke(app, install, env=PASSWORD)
    assert done.stdout.splitlines() == ["ink:1  installed", f"in {bundle_copy}.adapters"]
    assert RUNNER.invoke(app, ["list", str(bundle_copy)]).stdout == "ink  version 1 installed\n"
    empty = RUNNER.invoke(app, ["list", str(bundle_copy), "--store", str(repo.parent / "none")]).stdout
    assert empty == "nothing is installed, nothing is known of a repository\n"


def test_a_pack_that_the_bundle_cannot_bind_is_not_switched_to(repo: Path, bundle_copy: Path, tmp_path: Path) -> None:
    _quad("install", bundle_copy, "ink", "--url", repo, "--root", repo / "metadata/1.root.json")
    before = read_installed(tmp_path / "phone.adapters")
    _quad("publish", "add", repo, _pack(tmp_path / "bad.qpack", 3, broken=True), "--keys", tmp_path / "keys")
    assert "ink" in _quad("install", bundle_copy, "ink", code=3)
    assert read_installed(tmp_path / "phone.adapters") == before
    assert before["ink"].is_file()


def test_what_was_installed_before_a_refusal_is_told(repo: Path, bundle_copy: Path) -> None:
    call = ["install", str(bundle_copy), "ink", "sky", "--url", str(repo), "--root", str(repo / "metadata/1.root.json")]
    done = RUNNER.invoke(app, call, env=PASSWORD)
    first, last = done.stderr.splitlines()
    assert first == "note: ink:1  installed, before what follows"
    assert "found 'sky'" in last
    assert (done.exit_code, done.stdout) == (2, "")


def test_a_reason_stays_on_its_line_and_moves_no_cursor(repo: Path, bundle_copy: Path, tmp_path: Path) -> None:
    _quad("install", bundle_copy, "ink", "--url", repo, "--root", repo / "metadata/1.root.json")
    reason = "faded\nadapter sky runs \x1b[2J"
    assert _quad("publish", "revoke", repo, "ink", "--keys", tmp_path / "keys", "--reason", reason)["revoked"][0]["reason"] == reason
    done = RUNNER.invoke(app, ["fetch", str(bundle_copy)])
    shown = "revoked: faded\\nadapter sky runs \\x1b[2J"
    assert done.stderr.splitlines() == [f"note: adapter ink:1 {shown}; it is disabled"]
    assert done.stdout.splitlines() == [f"ink  not installed; version 1 {shown}"]


def test_a_repository_that_was_tampered_with_is_refused_with_exit_3(repo: Path, bundle_copy: Path) -> None:
    for path in (repo / "targets").rglob("*.qpack"):
        data = np.frombuffer(path.read_bytes(), np.uint8).copy()
        data[-1] ^= 1
        path.write_bytes(data.tobytes())
    line = _quad("install", bundle_copy, "ink", "--url", repo, "--root", repo / "metadata/1.root.json", code=3)
    assert "(tampered pack)" in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("publish", "init", "repo", "--keys", "repo/keys"), "--keys: expected a directory outside of repo"),
        (("publish", "add", "repo", "a.qpack", "--keys", "keys", "--runtime", "1"), "--runtime: expected FROM..BEFORE, found '1'"),
        (("publish", "add", "repo", "a.qpack", "--keys", "keys", "--min-ram", "much"), "--min-ram: expected a size, found 'much'"),
        (("publish", "rotate", "repo", "mirror", "--keys", "keys"), "ROLE: expected one of root, targets, snapshot, timestamp"),
        (("publish", "add", "repo", "--keys", "keys"), "Missing argument 'PACK...'"),
        (("publish", "refresh", "repo"), "Missing option '--keys'"),
    ],
)
def test_wrong_usage_is_exit_2(arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in _quad(*arguments, code=2)
    assert not list(tmp_path.iterdir())


def test_the_password_comes_from_a_file_or_the_environment_and_is_asked_of_nobody_else(tmp_path: Path) -> None:
    init = ["publish", "init", str(tmp_path / "repo"), "--keys", str(tmp_path / "keys")]
    done = RUNNER.invoke(app, init)
    assert done.exit_code == 2
    assert "password: expected --password-file or QUAD_PASSWORD, found neither, and no terminal to ask" in done.stderr
    (tmp_path / "password").write_text("a password in a file\n")
    assert RUNNER.invoke(app, [*init, "--password-file", str(tmp_path / "password")]).exit_code == 0
    refresh = ["publish", "refresh", str(tmp_path / "repo"), "--keys", str(tmp_path / "keys")]
    assert RUNNER.invoke(app, refresh, env={"QUAD_PASSWORD": "a password in a file"}).exit_code == 0
    (tmp_path / "password").write_bytes("Passwörter".encode("latin-1"))
    other = ["publish", "init", str(tmp_path / "other"), "--keys", str(tmp_path / "keys2")]
    assert RUNNER.invoke(app, other, env={"QUAD_PASSWORD": "Passw\udcf6rter"}).exit_code == 0  # bytes that are no UTF-8
    refresh_other = ["publish", "refresh", str(tmp_path / "other"), "--keys", str(tmp_path / "keys2")]
    assert RUNNER.invoke(app, [*refresh_other, "--password-file", str(tmp_path / "password")]).exit_code == 0
    wrong = RUNNER.invoke(app, refresh, env={"QUAD_PASSWORD": "another password"})
    assert wrong.exit_code == 1
    assert "a password in" not in wrong.stderr
