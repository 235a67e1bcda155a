"""MODEL may be a hub id: the cache goes first, only what is read is fetched, and what cannot be had is one line. No network here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from quad.core.errors import InputError, QuadError, UnsupportedError
from quad.model.base import hub
from quad.model.base.hub import files_to_read, resolve_model
from quad.model.base.open import open_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "artist/paint-1.5"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of huggingface's."""
    root = tmp_path / "hub"
    root.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    return root


def _store(cache: Path, model: Path, revision: str = "main") -> Path:
    """The model as the hub's client lays it down: files by their digest, links in a snapshot."""
    repo = cache / f"models--{REPO.replace('/', '--')}"
    snapshot = repo / "snapshots" / COMMIT
    for number, file in enumerate(sorted(file for file in model.rglob("*") if file.is_file())):
        blob, link = repo / "blobs" / f"{number:064x}", snapshot / file.relative_to(model)
        for place in (blob, link):
            place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blob)
        link.symlink_to(blob)
    (repo / "refs").mkdir(exist_ok=True)
    (repo / "refs" / revision).write_text(COMMIT)
    return snapshot


def test_a_directory_goes_first(cache: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _store(cache, model_dir)
    monkeypatch.chdir(cache.parent)
    shutil.copytree(model_dir, cache.parent / REPO)
    assert resolve_model(REPO) == Path(REPO)


@pytest.mark.parametrize("revision", ["main", "v2", COMMIT])
def test_a_whole_copy_in_the_cache_needs_no_network(revision: str, cache: Path, model_dir: Path) -> None:
    snapshot = _store(cache, model_dir, revision)
    text = REPO if revision == "main" else f"{REPO}@{revision}"
    directory = resolve_model(text)
    assert directory.samefile(snapshot)
    assert open_model(directory).digest == open_model(model_dir).digest


def _refused(text: str, says: str, error: type[QuadError] = InputError) -> None:
    with pytest.raises(error) as caught:
        resolve_model(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_single_file_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "v1-5.safetensors").write_bytes(b"x")
    monkeypatch.setattr(hub, "_cached", lambda *_: pytest.fail("asked the hub"))
    assert resolve_model("models/v1-5.safetensors") == Path("models/v1-5.safetensors")


def test_what_cannot_be_had_is_one_line(cache: Path, model_dir: Path) -> None:
    _refused(REPO, f"{REPO}: expected a directory, or a model on the hub, found neither, and the hub is not to be reached; go online once")
    _refused(
        "no/such/place",
        "no/such/place: expected a diffusers directory, a checkpoint (.safetensors) or a hub id, found none; check the path",
    )
    _refused(f"https://hub.test/{REPO}", "or a hub id, found an address; give the hub id alone, owner/name")
    snapshot = _store(cache, model_dir)
    (snapshot / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    _refused(REPO, "found neither, and the hub is not to be reached")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (RepositoryNotFoundError, "found none of that name; check the name, or log in where it is private"),
        (GatedRepoError, "found one whose licence has to be accepted first"),
        (RevisionNotFoundError, "found no such revision; check what follows the @"),
        (HfHubHTTPError, "found no answer (503 Server Error"),
    ],
)
def test_answers_of_the_hub(kind: type[HfHubHTTPError], says: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not list(cache.iterdir())
    response: Any = SimpleNamespace(headers={}, request=None)

    def answer(*_args: object, **_kwargs: object) -> list[str]:
        raise kind("503 Server Error\nfor this place", response=response)

    monkeypatch.setattr(hub.HfApi, "list_repo_files", answer)
    _refused(REPO, says)


@pytest.fixture
def online(cache: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """A hub with one model, and the names of the files that were fetched from it."""
    remote, fetched = tmp_path / "remote", []
    shutil.copytree(model_dir, remote)
    (remote / "picture.png").write_bytes(b"x")
    (remote / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    assert not list(cache.iterdir())

    def names() -> list[str]:
        return sorted(file.relative_to(remote).as_posix() for file in remote.rglob("*") if file.is_file())

    def fetch(repo: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool = False) -> str:
        assert (repo, revision) == (REPO, None)
        if local_files_only:
            raise FileNotFoundError("empty cache")
        target = tmp_path / "fetched"
        for name in names():
            if any(fnmatch(name, pattern) for pattern in allow_patterns) and not (target / name).exists():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(remote / name, target / name)
                fetched.append(name)
        return str(target)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    monkeypatch.setattr(hub.HfApi, "list_repo_files", lambda _self, _repo, revision: names())
    return remote, fetched


def test_only_what_is_read_is_fetched(online: tuple[Path, list[str]]) -> None:
    remote, fetched = online
    shutil.copyfile(remote / "unet/diffusion_pytorch_model.safetensors", remote / "unet/diffusion_pytorch_model.fp16.safetensors")
    (remote / "unet/diffusion_pytorch_model.bin").write_bytes(b"\x80")
    (remote / "safety_checker").mkdir()
    (remote / "safety_checker/model.safetensors").write_bytes(b"x")
    assert open_model(resolve_model(REPO)).picture_size == (32, 32)
    assert {name for name in fetched if not name.endswith((".json", ".txt"))} == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }
    assert "model_index.json" in fetched


def test_an_index_of_shards_that_were_not_fetched_is_passed_over(online: tuple[Path, list[str]]) -> None:
    remote, fetched = online
    single_file = remote / "unet/diffusion_pytorch_model.safetensors"
    shutil.copyfile(single_file, remote / "unet/diffusion_pytorch_model.fp16.safetensors")
    single_file.rename(remote / "unet/diffusion_pytorch_model-00001-of-00001.safetensors")
    index = {"weight_map": {"conv_in.weight": "diffusion_pytorch_model-00001-of-00001.safetensors"}}
    (remote / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert open_model(resolve_model(REPO)).picture_size == (32, 32)
    assert "unet/diffusion_pytorch_model-00001-of-00001.safetensors" not in fetched


def test_a_copy_that_lacks_a_shard_is_not_whole(cache: Path, model_dir: Path) -> None:
    snapshot = _store(cache, model_dir)
    weights = snapshot / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    _refused(REPO, "found neither, and the hub is not to be reached")


def test_another_family_is_refused_before_its_weights_are_fetched(online: tuple[Path, list[str]]) -> None:
    remote, fetched = online
    (remote / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    _refused(REPO, "found StableDiffusion3Pipeline (Stable Diffusion 3)", UnsupportedError)
    assert fetched
    assert not [name for name in fetched if name.endswith(".safetensors")]


def test_pickled_weights_are_refused_before_they_are_fetched(online: tuple[Path, list[str]]) -> None:
    remote, fetched = online
    (remote / "vae/diffusion_pytorch_model.safetensors").rename(remote / "vae/diffusion_pytorch_model.bin")
    _refused(REPO, f"{REPO}/vae: expected diffusion_pytorch_model.safetensors, found vae/diffusion_pytorch_model.bin")
    assert not fetched


@pytest.mark.parametrize(
    "shard",
    [
        lambda i: f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors",
        lambda i: f"unet/diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors",
        lambda i: f"unet/diffusion_pytorch_model-0000{i}-of-00002.fp16.safetensors",
    ],
)
def test_shards_of_any_naming(shard: Callable[[int], str]) -> None:
    other_weights = ["vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
    assert files_to_read(REPO, [shard(1), shard(2), *other_weights])[1] == [shard(1), shard(2), *other_weights]
