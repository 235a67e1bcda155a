"""A bundle whose files change, or that another one takes the place of: the bundle that was opened runs, or a line says why not."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from quad.core.digests import file_digest
from quad.core.errors import VerificationError
from quad.core.manifest import PROFILE_FILE, TOKENIZER_FILE
from quad.core.storage.replaced import identity_of, unless_replaced
from quad.core.storage.stable_file import Identity
from quad.runtime import QuadPipeline, open_bundle
from quad.runtime import bundle as bundle_module
from quad.runtime.engines.engine import Engine, open_engine
from quad.runtime.engines.ort import OrtEngine
from tests.conftest import Spy
from tests.runtime.conftest import write_manifest

UNET_FILE = "unet/model.onnx"


def replace_graph(root: Path) -> None:
    """Another U-Net of the same inputs in place of this one, under another inode."""
    model = onnx.load(root / UNET_FILE)
    for tensor in model.graph.initializer:
        if tensor.name == "w3":
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * -3, "w3"))
    onnx.save(model, root / "unet/.new")
    os.replace(root / "unet/.new", root / UNET_FILE)


def date(root: Path, ahead_s: float) -> None:
    at = time.time() + ahead_s
    for path in root.rglob("*"):
        os.utime(path, (at, at))


def picture(pipe: QuadPipeline) -> NDArray[np.uint8]:
    return np.asarray(pipe("it", task="text-to-image", seed=1).images[0])


def opened(root: Path, **options: Any) -> QuadPipeline:
    return QuadPipeline.from_pretrained(root, engine="ort", threads=1, memory="minimal", **options)


@pytest.fixture
def other(bundle_copy: Path, tmp_path: Path) -> Path:
    """A whole bundle with another U-Net."""
    root = Path(shutil.copytree(bundle_copy, tmp_path / "other"))
    replace_graph(root)
    write_manifest(root)
    return root


def put(other: Path, root: Path) -> None:
    """Another bundle at the place of one, as a build puts it there."""
    root.rename(root.with_name("away"))
    other.rename(root)


@pytest.mark.parametrize("ahead_s", [0.0, 365 * 86400.0], ids=["now", "a year ahead"])
def test_a_graph_replaced_right_after_it_was_written_is_refused(bundle_copy: Path, ahead_s: float) -> None:
    date(bundle_copy, ahead_s)
    pipe = opened(bundle_copy)
    before = picture(pipe)
    assert np.array_equal(picture(pipe), before)  # it may be so fresh for ever, and runs
    replace_graph(bundle_copy)
    with pytest.raises(VerificationError, match=rf"{UNET_FILE}: expected digest .* the file was changed or damaged"):
        picture(pipe)


def test_a_file_is_hashed_until_a_change_would_show(bundle_copy: Path, spy: Spy, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(bundle_copy)
    hashed = spy(bundle_module, "file_digest", lambda path: path.name)
    bundle.graph("unet")
    bundle.graph("unet")
    assert hashed == ["model.onnx"] * 2
    monkeypatch.setattr(Identity, "settled", lambda *_: True)
    bundle.graph("unet")
    bundle.graph("unet")
    assert hashed == ["model.onnx"] * 3


def test_a_graph_replaced_while_an_engine_loads_it_is_refused(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = OrtEngine.load

    def load(engine: OrtEngine, model_file: Path, threads: int, lean: bool = False) -> Any:
        if model_file.parent.name == "unet":
            replace_graph(bundle_copy)
        return real(engine, model_file, threads, lean)

    pipe = opened(bundle_copy)
    monkeypatch.setattr(OrtEngine, "load", load)
    with pytest.raises(VerificationError, match="the file was changed or damaged"):
        picture(pipe)


@pytest.mark.parametrize("verify", [True, False])
def test_a_bundle_that_another_took_the_place_of_is_told_so(bundle_copy: Path, other: Path, verify: bool) -> None:
    pipe = opened(bundle_copy, verify=verify)
    put(other, bundle_copy)
    with pytest.raises(VerificationError, match=rf"{bundle_copy}: expected the bundle that was opened, found another one by now; open it"):
        picture(pipe)


def test_a_pipeline_whose_bundle_is_replaced_while_it_is_opened_is_opened_anew(
    bundle_copy: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = picture(opened(other))
    real = open_engine

    def engine(name: str, offered: Sequence[str], precision: str) -> Engine:
        if other.exists():
            put(other, bundle_copy)
        return real(name, offered, precision)

    monkeypatch.setattr("quad.runtime.pipeline.open_engine", engine)
    assert np.array_equal(picture(opened(bundle_copy)), expected)


@pytest.mark.parametrize("at", [PROFILE_FILE, UNET_FILE, TOKENIZER_FILE])
def test_a_bundle_replaced_while_it_is_opened_is_opened_anew(
    bundle_copy: Path, other: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_bundle(other).manifest

    def digest(path: Path) -> str:
        if path == bundle_copy / at and other.exists():
            put(other, bundle_copy)
        return file_digest(path)

    monkeypatch.setattr(bundle_module, "file_digest", digest)
    assert open_bundle(bundle_copy).manifest == expected


def test_what_is_read_has_the_digest_of_the_manifest(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(bundle_copy)
    assert bundle.read(TOKENIZER_FILE) == (bundle_copy / TOKENIZER_FILE).read_bytes()
    monkeypatch.setattr(Path, "read_bytes", lambda _: b"{}")
    with pytest.raises(VerificationError, match=rf"{TOKENIZER_FILE}: expected digest"):
        bundle.read(TOKENIZER_FILE)


def test_work_is_done_again_only_where_another_directory_came(tmp_path: Path) -> None:
    tries: list[int] = []

    def work(replacements: int) -> Callable[[], int]:
        def fail() -> int:
            tries.append(1)
            if len(tries) <= replacements:
                (tmp_path / "x").write_bytes(bytes(len(tries)))
                raise VerificationError("a mix")
            if replacements == 0:
                raise VerificationError("damaged")
            return len(tries)

        return fail

    (tmp_path / "x").touch()
    assert unless_replaced(tmp_path / "x", work(2)) == 3
    tries.clear()
    with pytest.raises(VerificationError, match="damaged"):
        unless_replaced(tmp_path / "x", work(0))
    assert len(tries) == 1
    tries.clear()
    with pytest.raises(VerificationError, match="a mix"):
        unless_replaced(tmp_path / "x", work(99))
    assert len(tries) > 1
    assert identity_of(tmp_path / "nowhere") is None
