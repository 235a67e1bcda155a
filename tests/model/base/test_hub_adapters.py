"""An adapter may be a hub id: what is on this machine goes first, then the cache, then the hub. No network here."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled

from quad.core.errors import InputError
from quad.lora.file import open_lora
from quad.model.base import hub_adapters
from quad.model.base.hub_adapters import adapter_files, resolve_adapter
from tests.lora.test_malformed_files import PAIR, PEFT_PAIR, write

REPO, COMMIT = "artist/ink-lora", "0123456789abcdef0123456789abcdef01234567"
SAVED, PEFT, CONFIG = "pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of huggingface's, and no hub."""
    root = tmp_path / "hub"
    root.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.chdir(tmp_path)

    def offline(*_args: object, **_kwargs: object) -> list[str]:
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr(hub_adapters.HfApi, "list_repo_files", offline)
    return root


def _store(cache: Path, files: dict[str, Path], revision: str = "main") -> Path:
    """Files as the hub's client lays them down: blobs, and links in a snapshot."""
    repository = cache / f"models--{REPO.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    for number, (name, file) in enumerate(files.items()):
        blob, link = repository / "blobs" / f"{number:064x}", snapshot / name
        for place in (blob, link):
            place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / revision).write_text(COMMIT)
    return snapshot


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    config = tmp_path / "files" / CONFIG
    weights = {SAVED: write(tmp_path / "files" / SAVED, PAIR), PEFT: write(tmp_path / "files" / PEFT, PEFT_PAIR)}
    config.write_text('{"r": 4, "lora_alpha": 4}')
    return {**weights, CONFIG: config}


@pytest.mark.parametrize(("text", "revision"), [(REPO, "main"), (f"{REPO}@v2", "v2"), (f"{REPO}@{COMMIT}", "main")])
def test_a_cached_repository_needs_no_network(text: str, revision: str, cache: Path, files: dict[str, Path]) -> None:
    _store(cache, {SAVED: files[SAVED], "README.md": files[CONFIG]}, revision)
    assert open_lora(resolve_adapter(Path(text))).digest == open_lora(files[SAVED]).digest


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        ({"unet/" + PEFT: PEFT, "unet/" + CONFIG: CONFIG}, REPO),
        ({"sd15/" + PEFT: PEFT, "sd15/" + CONFIG: CONFIG, SAVED: SAVED}, f"{REPO}/sd15"),
        ({"sd15/" + PEFT: PEFT, "sd15/" + CONFIG: CONFIG, SAVED: SAVED}, f"{REPO}/sd15/{PEFT}@main"),
        ({"ink 8 steps.safetensors": SAVED}, REPO),
        ({"a.safetensors": SAVED, "b.safetensors": PEFT}, f"{REPO}/a.safetensors"),
    ],
)
def test_where_an_adapter_lies_in_a_repository(stored: dict[str, str], text: str, cache: Path, files: dict[str, Path]) -> None:
    _store(cache, {name: files[file] for name, file in stored.items()})
    assert len(open_lora(resolve_adapter(Path(text))).tensors) == 2


def test_what_is_on_this_machine_goes_first(cache: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _store(cache, {SAVED: files[SAVED]})
    monkeypatch.setattr(hub_adapters, "_cached", lambda *_: pytest.fail("asked the cache"))
    Path("artist").mkdir()
    for text in (
        REPO,
        "artist/gone.safetensors",
        "gone.safetensors",
        "else/gone.safetensors",
        "else/gone.ckpt",
        "/gone/a",
        "../a/b",
        "a:b/c",
    ):
        assert resolve_adapter(Path(text)) == Path(text)


def test_only_the_adapter_s_files_are_fetched(cache: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["unet/" + PEFT, "unet/" + CONFIG, "optimizer.bin", "sample.png", "checkpoint-500/" + PEFT]
    fetched: list[str] = []

    def fetch(_repo: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool = False) -> str:
        if local_files_only:
            raise FileNotFoundError("not cached")
        assert revision == "v2"
        fetched.extend(allow_patterns)
        return str(_store(cache, {name: files[Path(name).name] for name in allow_patterns}))

    monkeypatch.setattr(hub_adapters.HfApi, "list_repo_files", lambda _self, _repo, revision: names)
    monkeypatch.setattr(hub_adapters, "snapshot_download", fetch)
    assert len(open_lora(resolve_adapter(Path(f"{REPO}@v2"))).tensors) == 2
    assert fetched == ["unet/" + PEFT, "unet/" + CONFIG]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["a.safetensors", "b.safetensors"], f"expected one LoRA, found 2 files: a.safetensors, b.safetensors; name one of them: {REPO}/a"),
        (["pytorch_lora_weights.bin"], "pytorch_lora_weights.bin: a pickled file, which can run code"),
        (["README.md"], "expected a LoRA in safetensors, found none"),
    ],
)
def test_repositories_without_one_adapter(names: list[str], says: str) -> None:
    with pytest.raises(InputError) as caught:
        adapter_files(REPO, names)
    assert says in str(caught.value)


def test_offline_is_one_line(cache: Path, files: dict[str, Path]) -> None:
    _store(cache, {"README.md": files[CONFIG]})
    for text in (REPO, f"{REPO}@v3", f"{REPO}/other"):
        with pytest.raises(InputError) as caught:
            resolve_adapter(Path(text))
        assert f"{text}: expected a LoRA file, or one on the hub, found neither, and the hub is not to be reached" in str(caught.value)


def test_the_command_line_resolves_adapters(cache: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from quad.cli.shared_options import local_adapters

    place = _store(cache, {SAVED: files[SAVED]})
    named: dict[str, Any] = {"ink": Path(REPO), "own": files[PEFT]}
    assert local_adapters(named) == {"ink": place, "own": files[PEFT]}
