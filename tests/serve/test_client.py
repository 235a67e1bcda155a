"""`QuadClient` is `QuadPipeline` with the model elsewhere: the same pictures bit for bit, the same words, the same errors."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from quad import QuadPipeline
from quad.core.errors import BackendError, QuadError, StoppedError, UsageError
from quad.serve import QuadClient
from quad.serve.api import NewRequest, encoded
from tests.arguments import try_all
from tests.serve.conftest import Serve, same

DRAW = np.random.default_rng(5)


@pytest.fixture
def pipe(tiny_bundle: Path) -> QuadPipeline:
    return QuadPipeline.from_pretrained(tiny_bundle, threads=1)


def test_pictures_are_those_of_the_pipeline_bit_for_bit(
    serve: Serve, pipe: QuadPipeline, picture: NDArray[np.uint8], mask: NDArray[np.uint8]
) -> None:
    client = serve(real=True).client()
    same(client, pipe, "car night", seed=3)
    same(client, pipe, "car night", seed=3, sampler="lcm:2", negative_prompt=None)
    same(client, pipe, "make it night", task="transform", image=picture, num_inference_steps=5)
    same(client, pipe, "the zeppelin", task="sketch", image=np.repeat(picture, 3, axis=1), negative_prompt="car", guidance_scale=3.5)
    same(client, pipe, task="transform", image=picture, strength=0.5)
    same(client, pipe, task="removal", image=np.tile(picture, (2, 3, 1)), mask_image=np.repeat(mask, 2, axis=1), mask_grow=4)


@pytest.mark.parametrize("words", [{"prompt": b"a"}, {"prompt": "\ud800"}, {"sampler": b"euler"}], ids=str)
def test_what_json_has_not_is_no_other_request(words: dict[str, Any]) -> None:
    """Bytes would arrive as a prompt in base64."""
    with pytest.raises(UsageError, match=r"expected (a text|text in UTF-8), found"):
        encoded(NewRequest(**words))


@pytest.mark.parametrize(
    "words",
    [
        *({"width": given} for given in (0, 8193, 16.5, "16", True)),
        *({"height": given} for given in (-1, 10**20)),
        *({"sampler": given} for given in (5, {}, "x" * 65)),
        *({"prompt_syntax": given} for given in ("comfy", None, [])),
        *({"seed": given} for given in (-1, 2**63, 1.5)),
        *({name: 2} for name in ("num_images_per_prompt", "generator", "output_type")),
        {"adapters": {"ink": {"unet": 1}}},
        {"prompt": ["a", "b"]},
    ],
    ids=str,
)
def test_what_no_request_may_say(words: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(json.dumps(words), type=NewRequest)


def _pictures() -> dict[str, Any]:
    """A picture in every mode and way that a user may have it."""
    rgba = Image.fromarray(DRAW.integers(0, 256, (20, 24, 4)).astype(np.uint8))
    rgb = rgba.convert("RGB")
    palette = rgb.quantize(16)
    palette.info["transparency"] = 3
    turned = rgb.copy()
    turned.info["exif"] = _turned_by(6)
    grey = DRAW.integers(0, 256, (20, 24)).astype(np.uint8)
    pictures = {mode: rgba.convert(mode) for mode in ("1", "L", "LA", "PA", "P", "RGB", "RGBA", "RGBX", "RGBa", "CMYK")}
    pictures |= {mode: rgb.convert(mode) for mode in ("YCbCr", "HSV", "LAB")}
    wide = {
        "I;16": Image.fromarray(grey.astype(np.uint16) * 257),
        "I": Image.fromarray(grey.astype(np.int32) * 200),
        "F": Image.fromarray(grey.astype(np.float32) / 255),
    }
    arrays = {"grey array": grey, "float array": np.asarray(rgba, np.float64) / 255, "bool array": grey > 100, "plane": grey[..., None]}
    return {**pictures, **wide, **arrays, "transparent palette": palette, "turned in memory": turned}


def _turned_by(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("name", list(_pictures()))
def test_a_picture_of_any_mode_arrives_as_the_pipeline_reads_it(
    serve: Serve, pipe: QuadPipeline, picture: NDArray[np.uint8], name: str
) -> None:
    client, given = serve(real=True).client(), _pictures()[name]
    same(client, pipe, task="transform", image=given)
    same(client, pipe, task="removal", image=picture, mask_image=given)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff"])
def test_a_file_arrives_as_the_pipeline_reads_it_turned_or_not(serve: Serve, pipe: QuadPipeline, tmp_path: Path, suffix: str) -> None:
    client, path = serve(real=True).client(), tmp_path / f"a.{suffix}"
    whole = Image.fromarray(DRAW.integers(0, 256, (30, 20, 3)).astype(np.uint8))
    whole.save(path)
    same(client, pipe, task="transform", image=path)
    if suffix == "jpg":
        whole.save(path, exif=_turned_by(6))
        assert ImageOps.exif_transpose(Image.open(path)).size == (30, 20)
        same(client, pipe, task="transform", image=str(path))


def test_adapters_are_chosen_by_each_client_for_itself(serve: Serve, pipe: QuadPipeline, picture: NDArray[np.uint8]) -> None:
    served = serve(real=True)
    one, other = served.client(name="one"), served.client(name="other")
    one.set_adapters(["transform", "removal"], weights=[0.7, 0.3])
    pipe.set_adapters(["transform", "removal"], weights=[0.7, 0.3])
    same(one, pipe, "car", task="text-to-image")
    assert one.get_active_adapters() == ["transform", "removal"]
    assert other.get_active_adapters() == []
    one.set_adapters("transform")
    pipe.set_adapters("transform")
    same(one, pipe, "car", image=picture)  # the task of the adapter
    one.disable_lora()
    pipe.disable_lora()
    same(one, pipe, "car", task="transform", image=picture)
    assert other("car", task="transform", image=picture).adapters == {"transform": 1.0}
    assert other.get_active_adapters() == ["transform"]


def test_tasks_and_adapters_are_the_pipelines(serve: Serve, pipe: QuadPipeline) -> None:
    client = serve(real=True).client()
    assert client.tasks == pipe.tasks
    assert client.adapters == pipe.adapters
    client.preload("sketch")


@pytest.mark.parametrize(
    "wanted",
    [
        {"task": "paint"},
        {"task": "transform"},
        {"task": "transform", "image": np.zeros((4, 4, 3), np.uint8), "num_inference_steps": 0},
        {"task": "text-to-image", "strength": 0.5},
        {"task": "text-to-image", "image_guidance_scale": 2.0},
        {"task": "text-to-image", "sampler": "abacus"},
        {"task": "text-to-image", "guidance_interval": (0.9, 0.1)},
        {"task": "text-to-image", "width": 24},
        {"task": "text-to-image", "original_size": (32, 32)},
        {"task": "text-to-image", "original_size": (32, -1)},
        {"task": "removal", "image": np.zeros((4, 4, 3), np.uint8), "mask_image": np.zeros((4, 4), np.uint8)},
        {"image": "nowhere.png", "task": "transform"},
        {"image": np.zeros((0, 4, 3), np.uint8), "task": "transform"},
    ],
)
def test_errors_are_of_the_pipelines_class(serve: Serve, pipe: QuadPipeline, wanted: dict[str, Any]) -> None:
    client = serve(real=True).client()
    with pytest.raises(QuadError) as ours:
        pipe("x", **wanted)
    with pytest.raises(QuadError) as theirs:
        client("x", **wanted)
    assert type(theirs.value) is type(ours.value)


@pytest.mark.parametrize(
    ("words", "way"),
    [
        ({"num_images_per_prompt": 2}, "num_images_per_prompt=; a call makes one picture: call again with the next seed"),
        ({"generator": None}, "generator=; say seed="),
        ({"eta": 0.5}, "eta=; name a sampler"),
        ({"colour": "red"}, "colour=; see QuadPipeline"),
    ],
)
def test_what_a_server_does_not_take_is_one_line(tmp_path: Path, words: dict[str, Any], way: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"client(...): expected arguments that it takes, found {way}")):
        QuadClient(tmp_path / "s")("x", **words)


def test_a_wrong_choice_is_told_when_it_is_made(serve: Serve, pipe: QuadPipeline) -> None:
    client = serve().client()
    for choose in (client.set_adapters, pipe.set_adapters):
        with pytest.raises(UsageError, match=r"expected one of transform, removal, sketch, found 'ghost'"):
            choose("ghost")
        with pytest.raises(UsageError, match="one finite weight each"):
            choose(["sketch"], [1.0, 2.0])


def test_steps_are_told_as_they_are_done(serve: Serve) -> None:
    client = serve(real=True).client()
    heard: list[tuple[int, float]] = []
    client("x", num_inference_steps=5, callback_on_step_end=lambda _client, index, timestep, _kwargs: heard.append((index, timestep)))
    assert [index for index, _ in heard] == list(range(5))
    assert heard == sorted(heard, key=lambda step: -step[1])


def test_clients_at_once_each_get_their_own(serve: Serve, pipe: QuadPipeline, picture: NDArray[np.uint8]) -> None:
    served = serve(real=True)
    wanted = [{"task": task, "image": picture, "seed": seed} for task in ("text-to-image", "transform", "sketch") for seed in range(4)]
    made: dict[int, NDArray[Any]] = {}

    def ask(number: int) -> None:
        made[number] = np.asarray(served.client(name=f"app {number % 3}")("car", **wanted[number]).images[0])

    threads = [Thread(target=ask, args=(number,)) for number in range(len(wanted))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, one in enumerate(wanted):
        np.testing.assert_array_equal(made[number], np.asarray(pipe("car", **one).images[0]))  # type: ignore[arg-type]


def test_a_deadline_that_cannot_be_kept_is_told_as_such(serve: Serve) -> None:
    with pytest.raises(StoppedError, match="expired"):
        serve(real=True).client()("x", deadline_s=1e-9)


def test_no_server_is_one_line(tmp_path: Path) -> None:
    for address in (str(tmp_path / "s"), "http://127.0.0.1:1"):
        with pytest.raises(BackendError, match="expected a running server"):
            QuadClient(address).health  # noqa: B018
    with pytest.raises(UsageError, match="a socket's path or http"):
        QuadClient("ftp://x").health  # noqa: B018


def test_the_client_needs_no_engine_and_no_web_framework() -> None:
    code = "import sys\nfrom quad.serve import QuadClient\nimport json\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"starlette", "uvicorn", "anyio", "h11", "onnxruntime", "torch"}


METHODS: dict[str, dict[str, Any]] = {
    "__call__": {"prompt": "a", "task": "text-to-image", "num_inference_steps": 1},
    "set_adapters": {"adapter_names": ["sketch"]},
    "load_lora_weights": {"path": "/nowhere", "adapter_name": "x"},
    "admit": {"path": "/nowhere", "adapter_name": "x"},
    "unload": {},
    "preload": {},
    "install": {},
}


@pytest.mark.parametrize("method", METHODS)
def test_whatever_an_argument_is_given_the_client_does_or_refuses(method: str, serve: Serve) -> None:
    try_all(getattr(serve(real=True).client(), method), METHODS[method])


def test_a_client_is_made_or_refused(serve: Serve) -> None:
    def use(**words: Any) -> None:
        QuadClient(**words).health  # noqa: B018 - it is asked for

    use.__signature__ = inspect.signature(QuadClient)  # type: ignore[attr-defined]
    try_all(use, {"address": serve().address})
