"""The memory plan: what stays, what goes, and that an adapter is bound again in whatever comes back."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from quad.core.errors import BackendError, UsageError, VerificationError
from quad.runtime import QuadPipeline, open_bundle
from quad.runtime import bundle as bundle_room
from quad.runtime.engines import ort as ort_engine
from quad.runtime.engines.ort import OrtEngine, OrtSession
from tests.conftest import Spy

Call = dict[str, Any]


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, weakref.ref[OrtSession]]]:
    """Every session that was loaded, by its component, in order."""
    seen: list[tuple[str, weakref.ref[OrtSession]]] = []
    load = OrtEngine.load

    def watched(self: OrtEngine, model_file: Path, threads: int, lean: bool = False) -> OrtSession:
        session = load(self, model_file, threads, lean)
        seen.append((model_file.parent.name, weakref.ref(session)))
        return session

    monkeypatch.setattr(OrtEngine, "load", watched)
    return seen


def _open(bundle: Path, memory: str) -> QuadPipeline:
    return QuadPipeline.from_pretrained(bundle, engine="ort", threads=1, memory=memory)


def _alive(sessions: list[tuple[str, weakref.ref[OrtSession]]]) -> list[str]:
    return [name for name, session in sessions if session() is not None]


def _calls(picture: NDArray[np.uint8], mask: NDArray[np.uint8]) -> list[Call]:
    return [
        {"prompt": "the car"},
        {"prompt": "make it night", "task": "transform", "image": picture},
        {"task": "removal", "image": picture, "mask_image": mask},
        {"task": "sketch", "image": picture, "seed": 3},
        {"prompt": "the car"},
    ]


def _latents(pipe: QuadPipeline, call: Call) -> NDArray[np.float32]:
    """What the last step led to, finer than a picture's 8 bits."""
    seen: list[NDArray[np.float32]] = []
    pipe(**call, callback_on_step_end=lambda _, __, ___, state: seen.append(state["latents"]))
    return seen[-1]


def test_a_plan_keeps_what_it_says_and_nothing_else(sessions: Any, tiny_bundle: Path, picture: NDArray[np.uint8]) -> None:
    gc.disable()  # a graph that is dropped goes at once, not when a collector passes
    try:
        for memory, kept in (("balanced", ["unet"]), ("minimal", [])):
            sessions.clear()
            pipe = _open(tiny_bundle, memory)
            assert _alive(sessions) == kept
            pipe("make it night", task="transform", image=picture)
            assert _alive(sessions) == kept
            order = ["text_encoder", "vae_encoder", *(["unet"] if not kept else []), "vae_decoder"]
            assert [name for name, _ in sessions] == kept + order
            del pipe
    finally:
        gc.enable()
    sessions.clear()
    whole = _open(tiny_bundle, "keep-all")
    whole("the car")
    assert _alive(sessions) == [name for name, _ in sessions] == ["unet", "text_encoder", "vae_encoder", "vae_decoder"]


@pytest.mark.parametrize("memory", ["balanced", "minimal"])
def test_the_pictures_of_every_plan(tiny_bundle: Path, memory: str, picture: NDArray[np.uint8], mask: NDArray[np.uint8]) -> None:
    """Adapters come and go with their graphs; `minimal` loads lean, and so does not add in the same order."""
    whole, sparing = _open(tiny_bundle, "keep-all"), _open(tiny_bundle, memory)
    for call in _calls(picture, mask):
        expected, found = _latents(whole, call), _latents(sparing, call)
        if memory == "balanced":
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        np.testing.assert_array_equal(_latents(sparing, call), found)


def test_an_adapter_that_was_set_is_there_in_whatever_is_loaded_later(tiny_bundle: Path) -> None:
    whole, sparing = _open(tiny_bundle, "keep-all"), _open(tiny_bundle, "minimal")
    base = _latents(sparing, {"task": "text-to-image"})
    for pipe in (whole, sparing):
        pipe.set_adapters(["transform", "removal"], [0.5, 0.25])
    found = _latents(sparing, {"task": "text-to-image"})
    np.testing.assert_allclose(found, _latents(whole, {"task": "text-to-image"}), rtol=0, atol=1e-4)
    assert (found != base).any()
    sparing.disable_lora()
    np.testing.assert_array_equal(_latents(sparing, {"task": "text-to-image"}), base)


def test_a_step_that_raises_leaves_no_graph_behind(sessions: Any, tiny_bundle: Path) -> None:
    pipe = _open(tiny_bundle, "minimal")
    good = _latents(pipe, {"seed": 1})

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe("the car", callback_on_step_end=stop)
    gc.collect()  # the traceback that was caught
    assert _alive(sessions) == []
    np.testing.assert_array_equal(_latents(pipe, {"seed": 1}), good)


def test_only_minimal_asks_for_lean_graphs(tiny_bundle: Path, spy: Spy) -> None:
    lean = spy(OrtEngine, "load", lambda _engine, _file, _threads, spare=False: spare)
    for memory, wanted in (("keep-all", {False}), ("balanced", {False}), ("minimal", {True})):
        lean.clear()
        _open(tiny_bundle, memory)("the car")
        assert set(lean) == wanted


def test_lean_keeps_integers_in_a_small_graph(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    class Recorder:
        def __init__(self, _file: Path, options: Any, left_out: Any = (), lean: bool = False) -> None:
            given.append((options.enable_cpu_mem_arena, tuple(left_out), lean))

    monkeypatch.setattr(ort_engine, "OrtSession", Recorder)
    for precision, lean in (("w8a16", False), ("w8a16", True), ("mixed:50", True)):
        OrtEngine(precision).load(tiny_bundle / "unet/model.onnx", 1, lean)
    assert given == [(True, (), False), (False, ort_engine.LEFT_OUT, True), (False, (), True)]


def test_a_plan_of_another_name(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="memory: expected one of keep-all, balanced, minimal, found 'tiny'; choose one of these"):
        _open(tiny_bundle, "tiny")


@pytest.mark.parametrize("memory", ["keep-all", "balanced", "minimal"])
def test_a_lying_table_is_refused_before_anything_is_made_of_it(
    bundle_copy: Path, rewrite: Any, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*_: Any) -> Mapping[str, Any]:
        raise AssertionError("buffers were made of a lie")

    bundle = open_bundle(bundle_copy)
    slots = msgspec.structs.replace(bundle.slots, slots=(msgspec.structs.replace(bundle.slots.slots[0], rank=5), bundle.slots.slots[1]))
    (bundle_copy / "slots.json").write_bytes(msgspec.json.encode(slots))
    rewrite(bundle_copy, parents=bundle.manifest.parents | {"slots": slots.digest}, adapters=(), tasks={})
    monkeypatch.setattr("quad.runtime.adapters.file.zero_buffers", made)
    with pytest.raises(VerificationError, match=r"graph unet, input conv_in.lora_A: expected \(5, 9, 3, 3\)"):
        _open(bundle_copy, memory)


@pytest.mark.parametrize("how", ["other bytes", "gone"])
def test_a_graph_that_was_changed_since_the_bundle_was_opened_is_refused(
    bundle_copy: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a plan that loads it again and again; one that was only written anew, as by a restored backup, is the same."""
    now = time.time_ns
    monkeypatch.setattr(bundle_room, "time_ns", lambda: now() + 60 * 10**9)  # files that were written just now have settled
    pipe = _open(bundle_copy, "minimal")
    first = _latents(pipe, {"seed": 1})
    file = bundle_copy / "unet/model.onnx"
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(whole)
    np.testing.assert_array_equal(_latents(pipe, {"seed": 1}), first)
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(whole[:-1] + b"\x00")
    with pytest.raises(VerificationError, match=r"fetch or build the bundle again"):
        pipe("the car")
    file.write_bytes(whole)
    np.testing.assert_array_equal(_latents(pipe, {"seed": 1}), first)


def test_a_graph_that_its_file_does_not_show_is_the_engines_to_refuse(bundle_copy: Path, rewrite: Any) -> None:
    (bundle_copy / "unet/model.onnx").write_bytes(b"graph" * 99)
    rewrite(bundle_copy)
    with pytest.raises(BackendError, match="engine ort: cannot load"):
        _open(bundle_copy, "minimal")
