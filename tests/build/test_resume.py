"""A build that was killed goes on to the very same bundle, wherever it was killed; pieces that are not whole and its own are made anew."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quad.build.build import build
from quad.build.request import BuildRequest
from quad.build.result import BuildResult
from quad.build.resume import stages as resumable
from quad.build.resume.cache import BuildCache, build_lock, cache_dir, identity_of
from quad.compile.artifact import OnnxArtifact
from quad.core.errors import BackendError, InputError
from quad.core.manifest import BUNDLE_FILE, Component
from quad.model.base.open import open_model
from tests.build.samples import SAMPLES, picture

PIECES = {
    "references", "tasks", "probes.mixed.channels", "probes.mixed", "statistics.base", "statistics.transform", "statistics.removal",
    "rules", "sensitivity", "probes.align", "aligned.transform", "aligned.removal", "graph.unet", "graph.text_encoder",
    "graph.vae_encoder", "graph.vae_decoder", "preview", "rounded",
}  # fmt: skip


class Killed(BaseException):
    """Stands for a kill: nothing in between may catch it."""


@pytest.fixture(scope="module")
def request_(model_dir: Path, adapter_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> BuildRequest:
    output = tmp_path_factory.mktemp("out") / "phone"
    return BuildRequest(model_dir, adapter_files, output, samples=SAMPLES, precision="mixed:50", distill_steps=1)


@pytest.fixture(scope="module")
def moments(request_: BuildRequest) -> list[str]:
    """All that a whole build tells of, in order; its bundle is at the request's output."""
    told: list[str] = []
    assert build(request_, lambda stage, _: told.append(stage)).resumed == ()
    assert not cache_dir(request_).exists()
    return told


def run(request: BuildRequest, moment: int) -> BuildResult | None:
    """The build, killed when it tells of that moment; its result where it has fewer left."""
    told: list[str] = []

    def kill(stage: str, share: float) -> None:
        told.append(stage)
        if len(told) == moment:
            raise Killed

    try:
        return build(request, kill)
    except Killed:
        return None


@pytest.fixture(scope="module")
def killed(request_: BuildRequest, moments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a build was killed as it was about to write; not to be changed."""
    place = tmp_path_factory.mktemp("killed")
    assert run(replace(request_, output=place / "phone"), last_moment(moments)) is None
    return place


@pytest.fixture
def left(killed: Path, request_: BuildRequest, tmp_path: Path) -> BuildRequest:
    """A request for whose output such a build has left its pieces; a bundle's bytes do not depend on its place."""
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    return replace(request_, output=tmp_path / "phone")


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.soak)])
def test_wherever_it_is_killed_the_bundle_is_the_same(step: int, request_: BuildRequest, moments: list[str], tmp_path: Path) -> None:
    """One build, killed at its second moment, then at its sixth, and so on to its end: each run does what is left."""
    request, kills = replace(request_, output=tmp_path / "phone"), 0
    while (result := run(request, 2 + step * kills)) is None:
        kills += 1
        assert not request.output.exists()
    assert kills > len(moments) // 6
    late = {"graph.text_encoder", "graph.vae_encoder", "graph.vae_decoder"}
    assert PIECES - set(result.resumed) <= late  # the last kill may have come before them
    assert (request.output / BUNDLE_FILE).read_bytes() == (request_.output / BUNDLE_FILE).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["phone"]


def last_moment(moments: list[str]) -> int:
    return len(moments) - moments[::-1].index("write")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def bend(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def pickle(file: Path) -> None:
    file.write_bytes(b"\x80\x04cos\nsystem\n(S'exit 7'\ntR.")


@pytest.mark.parametrize("damage", [cut, bend, pickle])
def test_damaged_pieces_are_made_anew(damage: Callable[[Path], None], request_: BuildRequest, left: BuildRequest) -> None:
    for name in ("statistics.base", "aligned.removal", "rules"):
        damage(cache_dir(left) / f"{name}.piece")
    damage(cache_dir(left) / "unet" / "model.onnx")
    result = build(left)
    assert PIECES - set(result.resumed) == {"statistics.base", "aligned.removal", "rules"}
    assert (left.output / BUNDLE_FILE).read_bytes() == (request_.output / BUNDLE_FILE).read_bytes()


def test_another_build_takes_nothing(left: BuildRequest) -> None:
    samples = (replace(SAMPLES[0], prompt="a blue house"), replace(SAMPLES[1], image=picture(7)), SAMPLES[2])
    assert build(replace(left, samples=samples)).resumed == ()


def test_what_ends_before_anything_is_made_leaves_the_pieces(left: BuildRequest, tmp_path: Path) -> None:
    """A mistyped path, and a second build while the first one is at work."""
    with pytest.raises(InputError, match="no such file"):
        build(replace(left, adapters={**left.adapters, "removal": tmp_path / "mistyped.safetensors"}))
    with build_lock(left), pytest.raises(InputError, match="no other build at work on it, found one"):
        build(left)
    assert set(build(left).resumed) == PIECES


def test_a_build_that_never_began_leaves_nothing(request_: BuildRequest, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        build(replace(request_, output=tmp_path / "phone", model=tmp_path / "mistyped"))
    assert list(tmp_path.iterdir()) == []


def test_the_networks_configs_are_part_of_the_identity(request_: BuildRequest, model_dir: Path, tmp_path: Path) -> None:
    """Numbers that no weight file holds, such as how many heads share a projection."""
    shutil.copytree(model_dir, tmp_path / "model")
    before = identity_of(request_, open_model(tmp_path / "model"), (), ())
    assert before == identity_of(request_, open_model(model_dir), (), ())
    file = tmp_path / "model" / "text_encoder" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_attention_heads": 4}))
    assert before != identity_of(request_, open_model(tmp_path / "model"), (), ())


def test_a_full_disk_is_told_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: OnnxArtifact, folder: Path) -> Component:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(OnnxArtifact, "write", full)
    with pytest.raises(BackendError, match=r"unet: cannot write \(disk full"):
        resumable.compiled(BuildCache(tmp_path, "mine"), "unet", lambda: OnnxArtifact(model=None, placement={}))  # type: ignore[arg-type]


def test_a_value_and_its_arrays_come_back_to_their_own_identity_alone(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.int16).reshape(2, 3), "b": np.float32([0.1])}
    BuildCache(tmp_path, "mine").write("piece", {"x": [0.1, 1 / 3]}, arrays)
    again = BuildCache(tmp_path, "mine")
    found = again.read("piece")
    assert found is not None
    assert found[0] == {"x": [0.1, 1 / 3]}
    assert {name: (array.dtype, array.tolist()) for name, array in found[1].items()} == {
        name: (array.dtype, array.tolist()) for name, array in arrays.items()
    }
    assert again.resumed == ["piece"]
    BuildCache(tmp_path, "mine").write("bare", 1)  # as an adapter of zeros is, once it is trimmed
    assert BuildCache(tmp_path, "mine").read("bare") == (1, {})
    assert BuildCache(tmp_path, "other").read("piece") is None
    assert BuildCache(None).read("piece") is None


def test_what_another_process_writes_meanwhile_is_not_taken(tmp_path: Path) -> None:
    early = BuildCache(tmp_path, "mine")
    BuildCache(tmp_path, "mine").write("piece", 1)
    assert early.read("piece") is None
