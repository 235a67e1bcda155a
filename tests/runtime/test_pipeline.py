"""`QuadPipeline`: law 4 bit for bit, tasks and their words, and an import that loads nothing."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from quad import QuadPipeline
from quad.core.errors import BackendError, CompatibilityError, InputError, UsageError
from quad.core.manifest import AdapterManifest
from quad.core.storage.pack import write_pack
from quad.runtime import Request


@pytest.fixture
def pipe(tiny_bundle: Path) -> QuadPipeline:
    return QuadPipeline.from_pretrained(tiny_bundle, threads=1)


def _pixels(pipe: QuadPipeline, **arguments: Any) -> NDArray[np.uint8]:
    return np.asarray(pipe("remove the car", **arguments).images[0])


def test_a_b_a_bit_for_bit_and_base_after_unload(pipe: QuadPipeline) -> None:
    text = {"task": "text-to-image"}
    base = _pixels(pipe, **text)
    pipe.set_adapters("transform")
    a = _pixels(pipe, **text)
    pipe.set_adapters("sketch")
    b = _pixels(pipe, **text)
    pipe.set_adapters("transform")
    np.testing.assert_array_equal(_pixels(pipe, **text), a)
    assert (a != base).any()
    assert (a != b).any()
    pipe.unload()
    assert pipe.get_active_adapters() == []
    np.testing.assert_array_equal(_pixels(pipe, **text), base)
    pipe.set_adapters("transform")
    np.testing.assert_array_equal(_pixels(pipe, **text), a)
    pipe.disable_lora()
    np.testing.assert_array_equal(_pixels(pipe, **text), base)


def test_zero_weight_is_the_base(pipe: QuadPipeline) -> None:
    base = _pixels(pipe)
    pipe.set_adapters("sketch", 0.0)
    np.testing.assert_array_equal(_pixels(pipe, task="text-to-image"), base)


def test_adapters_together_in_any_order(pipe: QuadPipeline) -> None:
    pipe.set_adapters(["transform", "removal"], weights=[0.7, 0.3])
    assert pipe("", task="text-to-image").adapters == {"transform": 0.7, "removal": 0.3}
    with pytest.raises(CompatibilityError, match="need rank 8"):
        pipe.set_adapters(["transform", "removal", "sketch"])
    assert pipe.get_active_adapters() == ["transform", "removal"]


def test_without_a_choice_each_task_brings_its_adapter(pipe: QuadPipeline, picture: np.ndarray) -> None:
    free = pipe("make it night", task="transform", image=picture)
    assert free.adapters == {"transform": 1.0}
    assert pipe("the car").task == "text-to-image"
    assert pipe.get_active_adapters() == []
    pipe.set_adapters("transform")
    chosen = pipe("make it night", image=picture)
    assert chosen.task == "transform"
    np.testing.assert_array_equal(np.asarray(free.images[0]), np.asarray(chosen.images[0]))
    pipe.disable_lora()
    base = pipe("make it night", task="transform", image=picture)
    assert base.notes == ("adapters: task transform is meant for 'transform', which is not active",)


def test_condition_reaches_the_graph(pipe: QuadPipeline, picture: np.ndarray, mask: np.ndarray) -> None:
    one = _pixels(pipe, task="transform", image=picture)
    assert (one != _pixels(pipe, task="transform", image=255 - picture)).any()
    result = _pixels(pipe, task="removal", image=picture, mask_image=mask, mask_grow=0)
    np.testing.assert_array_equal(result[mask == 0], picture[mask == 0])
    assert (result[mask > 0] != picture[mask > 0]).any()


def test_other_sizes(pipe: QuadPipeline) -> None:
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 50), dtype=np.uint8))
    mask = np.zeros((40, 100), np.uint8)
    mask[10:20, 40:60] = 255
    removal = pipe("remove the car", task="removal", image=wide, mask_image=mask)
    assert removal.images[0].size == (50, 20)
    assert removal.notes[0] == "mask: resized from 100x40 to the picture's 50x20"
    sketch = pipe("the car", task="sketch", image=wide)
    assert sketch.images[0].size == (16, 16)
    assert sketch.notes == ("image: its centre square, resized from 50x20 to 16x16",)


def test_guidance_and_its_unconditional_side(pipe: QuadPipeline, picture: np.ndarray) -> None:
    plain = _pixels(pipe, task="sketch", image=picture, guidance_scale=1.0)
    assert (plain != _pixels(pipe, task="sketch", image=picture)).any()
    same = _pixels(pipe, task="sketch", image=picture, guidance_scale=3.0, negative_prompt="remove the car")
    assert np.abs(plain.astype(int) - same).max() <= 1


def test_a_negative_prompt_without_guidance_is_told(pipe: QuadPipeline, picture: np.ndarray) -> None:
    given: dict[str, Any] = {"task": "sketch", "image": picture, "negative_prompt": "car"}
    says = "negative prompt: it counts only with guidance above 1, it was not used"
    assert says in pipe(**given, guidance_scale=1.0).notes
    assert says not in pipe(**given, guidance_scale=3.0).notes
    assert says not in pipe(task="sketch", image=picture, guidance_scale=1.0).notes


def test_a_note_says_which_prompt_it_is_about(pipe: QuadPipeline, picture: np.ndarray) -> None:
    given: dict[str, Any] = {"task": "sketch", "image": picture, "guidance_scale": 3.0}
    line = "prompt: this model does not know 'dragon'; it reads them as unknown words"
    assert pipe("dragon", **given).notes == (line,)
    assert pipe("car", **given, negative_prompt="dragon").notes == (f"negative {line}",)
    assert set(pipe("the dragon", **given, negative_prompt="dragon").notes) == {line, f"negative {line}"}


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0, -2.0])
def test_at_one_and_below_there_is_no_guidance(scale: float, pipe: QuadPipeline, picture: np.ndarray) -> None:
    """As in diffusers, where 0 is how guidance is switched off."""
    given: dict[str, Any] = {"task": "sketch", "image": picture, "seed": 3}
    result = pipe("the car", **given, guidance_scale=scale)
    assert (np.asarray(result.images[0]) == np.asarray(pipe("the car", **given, guidance_scale=1.0).images[0])).all()
    assert (f"guidance {scale:g}: at 1 and below there is none, the prompt alone counts" in result.notes) == (scale < 1.0)


def test_seed_and_latents(pipe: QuadPipeline) -> None:
    noise = np.random.default_rng(5).standard_normal((1, 4, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(_pixels(pipe, seed=5), _pixels(pipe, latents=noise))
    assert (_pixels(pipe, seed=5) != _pixels(pipe, seed=6)).any()
    with pytest.raises(InputError, match="latents"):
        pipe("the car", latents=noise[:, :3])
    with pytest.raises(UsageError, match="seed"):
        pipe("the car", seed=-1)


def test_callback_and_steps(pipe: QuadPipeline) -> None:
    seen: list[tuple[int, float]] = []

    def callback(owner: QuadPipeline, index: int, timestep: float, state: dict[str, Any]) -> None:
        assert owner is pipe
        assert state["latents"].shape == (1, 4, 4, 4)
        seen.append((index, timestep))

    pipe("the car", num_inference_steps=5, callback_on_step_end=callback)
    assert [index for index, _ in seen] == [0, 1, 2, 3, 4]
    assert [t for _, t in seen] == sorted((t for _, t in seen), reverse=True)
    with pytest.raises(UsageError, match="num_inference_steps: expected 1 to 1000, found 0"):
        pipe("the car", num_inference_steps=0)


def test_a_call_that_is_given_up_leaves_the_pipeline_as_it_was(pipe: QuadPipeline, picture: np.ndarray) -> None:
    def stop(_: QuadPipeline, index: int, __: float, ___: dict[str, Any]) -> None:
        if index == 1:
            raise KeyboardInterrupt

    base, sketch = _pixels(pipe), _pixels(pipe, task="sketch", image=picture)
    with pytest.raises(KeyboardInterrupt):
        pipe("the car", task="sketch", image=picture, callback_on_step_end=stop)
    np.testing.assert_array_equal(_pixels(pipe), base)
    np.testing.assert_array_equal(_pixels(pipe, task="sketch", image=picture), sketch)


def test_stages_of_several_pictures_in_any_order(pipe: QuadPipeline, picture: np.ndarray, mask: np.ndarray) -> None:
    asked = [
        Request(prompt="the car", task="sketch", image=picture, seed=1),
        Request(prompt="make it night", task="transform", image=picture, seed=2),
        Request(prompt="remove the car", task="removal", image=picture, mask_image=mask, seed=3),
        Request(prompt="the car", adapters={"sketch": 0.5}, task="text-to-image"),
    ]
    alone = [np.asarray(pipe.finish(pipe.prepare(one)).images[0]) for one in asked]
    prepared = [pipe.prepare(one) for one in asked]
    for which in (2, 0, 3, 1):
        np.testing.assert_array_equal(np.asarray(pipe.finish(prepared[which]).images[0]), alone[which])
    np.testing.assert_array_equal(alone[0], np.asarray(pipe("the car", task="sketch", image=picture, seed=1).images[0]))
    pipe.set_adapters("sketch", 0.5)
    pipe.finish(pipe.prepare(asked[1]))
    assert pipe("the car", task="text-to-image").adapters == {"sketch": 0.5}  # what was set stays set


def test_words_for_wrong_calls(pipe: QuadPipeline, picture: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one of removal, sketch, text-to-image, transform, found 'colorize'"):
        pipe("the car", task="colorize")
    assert pipe("remove the dragon").notes == ("prompt: this model does not know 'dragon'; it reads them as unknown words",)
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(InputError, match=r"notes.txt: expected a picture"):
        pipe("the car", task="sketch", image=tmp_path / "notes.txt")
    with pytest.raises(InputError, match="an empty mask"):
        pipe("the car", task="removal", image=picture, mask_image=np.zeros((16, 16), np.uint8))


def test_loading_a_pack(pipe: QuadPipeline, ink: tuple[AdapterManifest, dict[str, NDArray[Any]]], tmp_path: Path) -> None:
    base = _pixels(pipe)
    write_pack(tmp_path / "ink.qpack", *ink)
    pipe.load_lora_weights(tmp_path / "ink.qpack", adapter_name="pen")
    np.testing.assert_array_equal(_pixels(pipe), base)
    pipe.set_adapters("pen")
    assert (_pixels(pipe) != base).any()
    pipe.unload("pen")
    np.testing.assert_array_equal(_pixels(pipe), base)
    with pytest.raises(UsageError, match="found 'pen'"):
        pipe.set_adapters("pen")


def test_timings_and_output(pipe: QuadPipeline, picture: np.ndarray) -> None:
    output = pipe("make it night", task="transform", image=picture, seed=3)
    assert output.timings_ms.keys() == {"text_encoder", "vae_encoder", "unet", "vae_decoder", "total"}
    parts = sum(ms for name, ms in output.timings_ms.items() if name != "total")
    assert 0 < parts <= output.timings_ms["total"]
    assert (output.task, output.seed, output.images[0].mode) == ("transform", 3, "RGB")


def test_warm_switch_is_under_5_ms(pipe: QuadPipeline) -> None:
    times = []
    for name in ["sketch", "transform"] * 10:
        start = perf_counter()
        pipe.set_adapters(name)
        times.append((perf_counter() - start) * 1e3)
    assert np.median(times[2:]) <= 5


FRESH = """
import sys, time
start = time.process_time()  # not wall time: the machine may be busy
import quad
bare = set(sys.modules)
import quad.runtime
from quad import QuadPipeline
seconds = time.process_time() - start
heavy = {"torch", "diffusers", "transformers", "onnx", "openvino", "peft", "scipy"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert "numpy" not in bare, "import quad must load nothing"
assert quad.__version__ and "build" in dir(quad)
if len(sys.argv) > 1:
    QuadPipeline.from_pretrained(sys.argv[1], threads=1)("the car")
    assert not heavy & set(sys.modules), heavy & set(sys.modules)
print(seconds)
"""


def test_fresh_interpreter_loads_no_torch(tiny_bundle: Path) -> None:
    runs = [
        subprocess.run([sys.executable, "-c", FRESH, *more], check=True, capture_output=True, text=True)
        for more in ([str(tiny_bundle)], [])
    ]
    assert min(float(run.stdout) for run in runs) < 1.0


def test_what_a_replaced_adapter_took_is_free_at_once(
    pipe: QuadPipeline, ink: tuple[AdapterManifest, dict[str, NDArray[Any]]], tmp_path: Path
) -> None:
    """Also where another one is bound meanwhile: nobody will ask for its old buffers again."""
    write_pack(tmp_path / "ink.qpack", *ink)
    pipe.load_lora_weights(tmp_path / "ink.qpack", "pen")
    pipe.set_adapters("pen")
    old = [weakref.ref(array) for array in pipe.switch.store.buffers("pen").values()]
    pipe.set_adapters("sketch")
    pipe.load_lora_weights(tmp_path / "ink.qpack", "pen")
    gc.collect()
    assert [one for one in old if one() is not None] == []


def test_a_graph_that_does_not_load_says_for_which_chip_it_is(bundle_copy: Path, rewrite: Any) -> None:
    (bundle_copy / "unet/model.onnx").write_bytes(b"not this")
    rewrite(bundle_copy)
    with pytest.raises(BackendError, match=r"build the bundle again$"):
        QuadPipeline.from_pretrained(bundle_copy, engine="ort", threads=1)
    rewrite(bundle_copy, requires={"soc": "SM8750", "htp_arch": "79"})
    with pytest.raises(BackendError, match=r"^engine ort: cannot load [^\n]*; this bundle is for htp_arch 79, soc SM8750$"):
        QuadPipeline.from_pretrained(bundle_copy, engine="ort", threads=1)
