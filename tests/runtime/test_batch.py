"""One call for several pictures gives, bit for bit, those of single calls; and diffusers' words are taken or told the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from quad.core.errors import InputError, UsageError
from quad.core.manifest import LatentPreview
from quad.runtime import QuadPipeline
from quad.runtime.preview import preview_picture
from tests.runtime.conftest import write_manifest

LCM = {"task": "text-to-image", "sampler": "lcm:3"}  # draws noise on its way


@pytest.fixture(scope="module")
def pipe(tiny_bundle: Path) -> QuadPipeline:
    return QuadPipeline.from_pretrained(tiny_bundle, threads=1)


def _pixels(output: Any) -> list[Any]:
    return [np.asarray(picture) for picture in output.images]


def _same(output: Any, *single: Any) -> None:
    assert len(output.images) == len(single)
    for picture, alone in zip(_pixels(output), single, strict=True):
        np.testing.assert_array_equal(picture, _pixels(alone)[0])


def test_pictures_of_a_call_are_those_of_single_calls(pipe: QuadPipeline) -> None:
    made = pipe(["make it night", "the car"], negative_prompt=["", "it"], guidance_scale=2.0, num_images_per_prompt=2, seed=5, **LCM)
    words = [("make it night", ""), ("make it night", ""), ("the car", "it"), ("the car", "it")]
    alone = [pipe(prompt, negative_prompt=no, guidance_scale=2.0, seed=5 + k, **LCM) for k, (prompt, no) in enumerate(words)]
    _same(made, *alone)
    assert made.seeds == (5, 6, 7, 8)
    assert len({picture.tobytes() for picture in _pixels(made)}) == 4


def test_generators(pipe: QuadPipeline) -> None:
    both = pipe("the car", num_images_per_prompt=2, generator=np.random.default_rng(3), **LCM)
    shared = np.random.default_rng(3)
    _same(both, pipe("the car", generator=shared, **LCM), pipe("the car", generator=shared, **LCM))
    _same(pipe("the car", generator=np.random.default_rng(3), **LCM), pipe("the car", seed=3, **LCM))
    listed = pipe("the car", num_images_per_prompt=2, generator=[np.random.default_rng(8), np.random.default_rng(3)], **LCM)
    _same(listed, pipe("the car", seed=8, **LCM), pipe("the car", seed=3, **LCM))


class _TorchGenerator:
    def initial_seed(self) -> int:
        return 3


def test_of_a_torch_generator_the_seed_is_taken(pipe: QuadPipeline) -> None:
    made = pipe("the car", num_images_per_prompt=2, generator=_TorchGenerator(), **LCM)
    _same(made, pipe("the car", seed=3, **LCM), pipe("the car", seed=4, **LCM))
    assert "generator: its seed was taken (3, 4), the noise is NumPy's and another than torch's" in made.notes


def test_each_prompt_is_encoded_once(pipe: QuadPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, runs = pipe.graph("text_encoder"), []
    run = encoder.run

    def counted(inputs: Any) -> Any:
        runs.append(inputs)
        return run(inputs)

    monkeypatch.setattr(encoder, "run", counted)
    pipe(["the car", "it"], num_images_per_prompt=3, guidance_scale=2.0, task="text-to-image")
    assert len(runs) == 3  # two prompts, and the negative one


def test_latents_of_several_pictures(pipe: QuadPipeline) -> None:
    noise = np.random.default_rng(0).standard_normal((2, 4, 4, 4)).astype(np.float32)
    made = pipe("the car", num_images_per_prompt=2, latents=noise, task="text-to-image")
    _same(made, *(pipe("the car", latents=one[None], task="text-to-image") for one in noise))
    with pytest.raises(InputError, match=r"\(3, c, h, w\), found float32 \(2, 4, 4, 4\)"):
        pipe("the car", num_images_per_prompt=3, latents=noise)


def test_types_of_output(pipe: QuadPipeline) -> None:
    words = {"prompt": "the car", "task": "text-to-image", "seed": 2, "num_images_per_prompt": 2}
    pictures, arrays = pipe(**words), pipe(**words, output_type="np")
    assert arrays.images.shape == (2, *_pixels(pictures)[0].shape)
    assert arrays.images.dtype == np.float32
    np.testing.assert_array_equal(np.rint(arrays.images * 255), np.stack(_pixels(pictures)))
    latents = pipe(**words, output_type="latent")
    assert latents.images.shape == (2, 4, 4, 4)
    decoded = pipe.graph("vae_decoder").run({"latent": latents.images[:1]})
    np.testing.assert_array_equal(np.clip(decoded / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1), arrays.images[:1])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"num_images_per_prompt": 0}, "num_images_per_prompt: expected a whole number, 1 to"),
        ({"num_images_per_prompt": 1.5}, "num_images_per_prompt"),
        ({"prompt": []}, "prompt: expected one string or more"),
        ({"prompt": ["a", "b"], "negative_prompt": ["c"]}, "negative_prompt: expected one string, or 2 as prompt, found 1"),
        ({"prompt": ["a", 3]}, "prompt: expected one string, or a list of strings, found int"),
        ({"generator": 42}, "generator: expected numpy.random.default_rng(seed), or a list of them, found int"),
        ({"generator": [np.random.default_rng(0)], "num_images_per_prompt": 2}, "generator: expected one, or 2"),
        ({"width": 512}, "width, height: expected one of the bundle's sizes, 16x16, found 512x16"),
        ({"height": 33}, "found 16x33; choose one, or build for another: quad build --size, multiples of 64"),
        ({"output_type": "pt"}, "torch.from_numpy"),
        ({"output_type": "jpeg"}, "output_type: expected one of pil, np, latent"),
        ({"cross_attention_kwargs": {"scale": 0.5}}, "found cross_attention_kwargs=; pipe.set_adapters"),
        ({"return_dict": False}, "take .images"),
        ({"mask": "m.png"}, "found mask=; say mask_image="),
        ({"adapter": "ink"}, "found adapter=; pipe.set_adapters(names, weights)"),
        ({"colour": "red"}, "pipe(...): expected arguments that it takes, found colour=; see QuadPipeline"),
    ],
)
def test_what_a_call_does_not_take(pipe: QuadPipeline, words: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        pipe(**words)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_bundles_own_size_may_be_said(pipe: QuadPipeline) -> None:
    pipe("the car", task="text-to-image", width=16, height=16)


@pytest.mark.parametrize(
    "name", ["to", "scheduler", "enable_model_cpu_offload", "fuse_lora", "enable_xformers_memory_efficient_attention", "unet"]
)
def test_words_of_diffusers_that_are_not_here(pipe: QuadPipeline, name: str) -> None:
    with pytest.raises(UsageError, match=rf"^pipe\.{name}: expected [^\n]*$"):
        getattr(pipe, name)
    with pytest.raises(UsageError, match=rf"^pipe\.{name}: expected [^\n]*$"):
        setattr(pipe, name, None)
    assert not hasattr(pipe, name)


def test_any_other_word_is_a_missing_attribute(pipe: QuadPipeline) -> None:
    with pytest.raises(AttributeError, match="no attribute 'colour'") as caught:
        pipe.colour  # noqa: B018
    assert not isinstance(caught.value, UsageError)


def test_what_opening_does_not_take(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="found torch_dtype=; the types are those of the bundle's graphs"):
        QuadPipeline.from_pretrained(tiny_bundle, torch_dtype="float16")


def test_a_preview_of_what_the_network_saw(bundle_copy: Path) -> None:
    weights = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 0.5, 0.5))
    write_manifest(bundle_copy, preview=LatentPreview(weights, (0.0, 0.1, -0.1)))
    pipe = QuadPipeline.from_pretrained(bundle_copy)
    seen: list[Any] = []

    def keep(_pipe: Any, index: int, timestep: float, tensors: dict[str, Any]) -> None:
        seen.append((index, timestep, tensors, pipe.preview(tensors["denoised"])))

    made = pipe("the car", task="text-to-image", num_images_per_prompt=2, callback_on_step_end=keep, output_type="latent", sampler="ddim:3")
    assert [index for index, *_ in seen] == [0, 1, 2, 0, 1, 2]
    # The last step of ddim ends at the clean latent that the network saw.
    for picture, (_, _, tensors, preview) in zip(made.images, seen[2::3], strict=True):
        np.testing.assert_allclose(tensors["denoised"][0], picture, atol=1e-6)
        colours = np.tensordot(np.asarray(weights), picture, axes=1) + np.array([0.0, 0.1, -0.1])[:, None, None]
        expected = np.rint(np.clip((colours + 1) * 127.5, 0, 255)).transpose(1, 2, 0)
        assert preview.size == (16, 16)
        np.testing.assert_array_equal(preview_picture(pipe.bundle.manifest.preview, picture[None], 1), expected)
    with pytest.raises(UsageError, match=r"latents \(1, 4, h, w\), found shape \(4, 4\)"):
        pipe.preview(np.zeros((4, 4), np.float32))


def test_a_bundle_without_colours_says_so(pipe: QuadPipeline) -> None:
    assert pipe.bundle.manifest.preview is msgspec.UNSET
    with pytest.raises(UsageError, match="build it again"):
        pipe.preview(np.zeros((1, 4, 4, 4), np.float32))


@pytest.mark.parametrize(
    "words",
    [
        *({"prompt": given} for given in (None, 5, b"a", {"a": 1}, ["a", None])),
        *({"negative_prompt": given} for given in (5, [None])),
        *({"num_inference_steps": given} for given in (2.5, 3.0, "3", [3])),
        *({"guidance_scale": given} for given in ("7", [7], 1j, 10**400)),
        *({"seed": given} for given in (None, 1.5, "1", [1])),
        *({"latents": given} for given in ([1, 2], "a", np.float32(1), [np.zeros((4, 4, 4))] * 2)),
        *({"task": "transform", "strength": given} for given in ("0.5", [1])),
        *({"sampler": given} for given in (5, b"euler", ["euler"])),
        {"task": ["transform"]},
        *({"width": given} for given in ("16", [16, 16], np.array([16, 16]), float("nan"))),
        *({"mask_grow": given} for given in (None, "2", 2.5)),
    ],
    ids=str,
)
def test_what_is_of_another_type_is_told_in_one_line(pipe: QuadPipeline, words: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"expected .*, found .*; "):
        pipe(**{"prompt": "the car", "task": "text-to-image", **words})


@pytest.mark.parametrize(
    "weights",
    [np.array(1j), 1j, 10**400, float("nan"), "0.5", object()],
    ids=["complex array", "complex", "past all numbers", "nan", "text", "object"],
)
def test_a_weight_that_is_no_number_is_told(pipe: QuadPipeline, weights: Any) -> None:
    with pytest.raises(UsageError, match=r"expected .*, found .*; mend the call"):
        pipe.set_adapters("transform", weights)


@pytest.mark.parametrize("names", [None, 5, {"transform": 0.5}], ids=str)
def test_weights_stand_beside_names(pipe: QuadPipeline, names: Any) -> None:
    with pytest.raises(UsageError, match="give weights beside them"):
        pipe.set_adapters(names)


def test_numbers_of_numpy_do_not_overflow(pipe: QuadPipeline) -> None:
    """As diffusers' users also write them, and None for no negative prompt."""
    made = pipe("the car", seed=np.uint8(255), num_images_per_prompt=np.int8(2), negative_prompt=None, **LCM)
    assert made.seeds == (255, 256)
    _same(made, pipe("the car", seed=255, **LCM), pipe("the car", seed=256, **LCM))
