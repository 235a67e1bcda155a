"""Adapters in the text encoder, from their files to pictures: U-Net alone, both networks, text encoder alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from quad.build.build import BuildRequest, BuildResult, build
from quad.core.decibels import relative_error
from quad.core.slots import NORMALISED, SEARCHED, TEXT_ENCODER, UNET
from quad.evaluate.figures.metrics import psnr
from quad.evaluate.figures.reference import PictureRequest, Reference
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import open_bundle
from quad.runtime.engines.engine import open_engine
from quad.runtime.pipeline import QuadPipeline
from tests.build.text_world import ADAPTERS, SAMPLES, text_adapter_files, text_request, to

__all__ = ["text_adapter_files", "text_request"]  # fixtures

BUILDS = [("cpu", "float"), ("cpu", "w8a16"), ("openvino", "mixed:50")]
GUIDANCE = 40.0
IDS = np.array([[4, 5, 6, 0, 0, 0, 0, 0]])


@pytest.fixture(scope="module")
def made(text_request: BuildRequest) -> Callable[[str, str], BuildResult]:
    """Builds by target and precision, each once."""
    found: dict[tuple[str, str], BuildResult] = {}

    def make(target: str, precision: str) -> BuildResult:
        if target == "openvino":
            pytest.importorskip("openvino")
        if (target, precision) not in found:
            name = f"{target}-{precision.replace(':', '')}"
            slots = SEARCHED if precision == "w8a16" else NORMALISED  # that one with normalised slots: test_normalised.py
            found[target, precision] = build(replace(to(text_request, name, target, precision), slots=slots))
        return found[target, precision]

    return make


@pytest.fixture(scope="module")
def reference(model_dir: Path, text_adapter_files: dict[str, Path]) -> Reference:
    return Reference(model_dir, text_adapter_files)


def text_graph(result: BuildResult) -> Callable[[dict[str, NDArray[Any]]], NDArray[np.float32]]:
    """The bundle's text encoder by itself, called with buffers of any component."""
    bundle = open_bundle(result.bundle)
    engine = open_engine(bundle.manifest.engines[0], (), bundle.manifest.precision)
    session = engine.load(bundle.graph(TEXT_ENCODER), 1)

    def call(buffers: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        session.bind({name: buffers[name] for name in bundle.slots.of(TEXT_ENCODER).input_shapes()})
        return session.run({"input_ids": IDS, "embeddings": np.zeros((*IDS.shape, bundle.manifest.text.hidden), np.float32)})

    return call


def sample_of(adapter: str | None) -> tuple[dict[str, Any], str]:
    """What the pipeline is called with, and the prompt."""
    sample = next(one for one in SAMPLES if adapter in (one.adapter, one.task) or (adapter is None and one.adapter is None))
    return {"task": sample.task, "image": sample.image, "mask_image": sample.mask, "seed": 3}, sample.prompt


def latent(pipe: QuadPipeline, adapter: str | None) -> NDArray[np.float32]:
    """The last latent of one run: finer than the picture's 8 bits."""
    given, prompt = sample_of(adapter)
    seen: list[NDArray[np.float32]] = []
    pipe(prompt, **given, callback_on_step_end=lambda _, __, ___, state: seen.append(np.array(state["latents"])))
    return seen[-1]


@pytest.mark.parametrize(("target", "precision"), BUILDS)
def test_a_b_a_and_the_base_after_them_bit_for_bit(target: str, precision: str, made: Callable[[str, str], BuildResult]) -> None:
    pipe = QuadPipeline.from_pretrained(made(target, precision).bundle, threads=1)
    pipe.disable_lora()
    base = latent(pipe, None)
    first: dict[str, NDArray[np.float32]] = {}
    for name in (*ADAPTERS, *ADAPTERS):
        pipe.set_adapters(name)
        found = first.setdefault(name, latent(pipe, None))
        np.testing.assert_array_equal(latent(pipe, None), found)
    assert all((found != base).any() for found in first.values())
    pipe.disable_lora()
    np.testing.assert_array_equal(latent(pipe, None), base)


@pytest.mark.parametrize(("target", "precision"), BUILDS)
def test_slots_lie_in_both_graphs_and_every_input_of_the_text_encoder_matters(
    target: str, precision: str, made: Callable[[str, str], BuildResult]
) -> None:
    result = made(target, precision)
    slots = open_bundle(result.bundle).slots
    components = [slot.component for slot in slots.slots]
    assert components == [UNET] * components.count(UNET) + [TEXT_ENCODER] * 6
    store, call = AdapterStore(open_bundle(result.bundle)), text_graph(result)
    noise = {name: noisy(array) for name, array in store.zeros.items()}
    whole = call(noise)
    for name in slots.of(TEXT_ENCODER).input_shapes():
        assert relative_error(call({**noise, name: np.zeros_like(noise[name])}), whole) > 1e-4, name
    base = call(store.zeros)
    np.testing.assert_array_equal(call(store.buffers("removal")), base)
    for name in ("transform", "words"):
        assert relative_error(call(store.buffers(name)), base) > 0.1


def noisy(zeros: NDArray[Any]) -> NDArray[Any]:
    scale = 0.3 if zeros.dtype == np.float32 else np.iinfo(zeros.dtype).max / 8
    return (np.random.default_rng(zeros.size).standard_normal(zeros.shape).clip(-4, 4) * scale).astype(zeros.dtype)


@pytest.mark.parametrize(("target", "precision"), BUILDS)
def test_the_shipped_text_encoder_is_near_the_float_one_with_each_adapter(
    target: str, precision: str, made: Callable[[str, str], BuildResult]
) -> None:
    smoke = made(target, precision).smoke[TEXT_ENCODER]
    assert set(smoke) == {"base", *ADAPTERS}
    assert max(smoke.values()) <= (1e-4 if precision == "float" else 0.05), smoke


def test_a_float_bundle_is_diffusers_with_peft(made: Callable[[str, str], BuildResult], reference: Reference) -> None:
    result = made("cpu", "float")
    pipe, call = QuadPipeline.from_pretrained(result.bundle, threads=1), text_graph(result)
    store = AdapterStore(open_bundle(result.bundle))
    for name in (None, *ADAPTERS):
        given, prompt = sample_of(name)
        spec = msgspec.structs.replace(pipe.tasks[given["task"]], adapter=name)
        theirs = reference.pictures(
            given["task"], [PictureRequest(prompt=prompt, seed=given["seed"], image=given["image"], mask=given["mask_image"])], spec
        )[0]
        with torch.inference_mode():
            hidden = reference._text_encoder(input_ids=torch.from_numpy(IDS)).last_hidden_state.numpy()
        ours = call(store.buffers(name) if name else store.zeros)
        assert np.abs(ours - hidden).max() <= 1e-4 * np.sqrt(np.square(hidden).mean()), name
        pipe.set_adapters(name) if name else pipe.disable_lora()
        assert psnr(np.asarray(pipe(prompt, **given).images[0]), theirs) >= 45.0, name


def test_leaving_the_text_part_out_gives_another_picture(made: Callable[[str, str], BuildResult], reference: Reference) -> None:
    """So that the figures above mean something; strong guidance, because a small random U-Net hardly minds what it reads."""
    pipe = QuadPipeline.from_pretrained(made("cpu", "float").bundle, threads=1)
    pipe.set_adapters("words")
    given, prompt = sample_of("words")
    ours = np.asarray(pipe(prompt, **given, guidance_scale=GUIDANCE).images[0])
    spec = msgspec.structs.replace(pipe.tasks["text-to-image"], guidance=GUIDANCE)
    jobs = [PictureRequest(prompt=prompt, seed=given["seed"])]
    whole, without = (
        psnr(ours, reference.pictures("text-to-image", jobs, msgspec.structs.replace(spec, adapter=name))[0]) for name in ("words", None)
    )
    assert whole >= 45.0
    assert without < 40.0


def test_mixed_adapters_add_up_in_the_text_encoder_too(made: Callable[[str, str], BuildResult], reference: Reference) -> None:
    result = made("cpu", "w8a16")
    store, call = AdapterStore(open_bundle(result.bundle)), text_graph(result)
    alone = store.mix(["words"], [1.0])[0]
    half, _ = store.mix(["words", "removal"], [0.5, 1.0])
    base = call(store.zeros)
    assert 0 < relative_error(call(half), base) < relative_error(call(alone), base)


def test_alignment_says_what_an_adapter_without_a_unet_part_took(made: Callable[[str, str], BuildResult]) -> None:
    alignment = made("cpu", "w8a16").to_json()["alignment"]
    assert {name: found["steps"] for name, found in alignment.items()} == {"removal": 2, "transform": 2, "words": 0}
