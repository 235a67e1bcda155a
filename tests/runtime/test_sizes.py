"""Several picture sizes in one bundle: the same pictures as from a bundle of one size, the same adapters, and graphs that come and go."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from quad import QuadPipeline
from quad.core.errors import InputError, UsageError, VerificationError
from quad.core.manifest import Component, GraphFiles
from quad.core.picture_size import PictureSize
from quad.core.slots import UNET
from quad.runtime.bundle import COMPONENTS, SIZED
from quad.runtime.engines.graph import Graph
from tests.runtime.conftest import write_manifest
from tests.runtime.tiny_unet import FACTOR, HIDDEN, SIZE

WIDE = PictureSize(32, 16)
OWN, WIDE_UNET = "unet", "unet.32x16"


def _widen(file: Path, to: Path) -> None:
    """The same graph for `WIDE` pictures."""
    model = onnx.load(file)
    sides = {SIZE: WIDE.grid, SIZE // FACTOR: (WIDE.height // FACTOR, WIDE.width // FACTOR)}
    for value in (*model.graph.input, *model.graph.output):
        shape = value.type.tensor_type.shape.dim
        if len(shape) == 4 and shape[2].dim_value in sides and not value.name.endswith(("lora_A", "lora_B")):
            shape[2].dim_value, shape[3].dim_value = sides[shape[2].dim_value]
    rows, columns = sides[SIZE // FACTOR]
    shapes = {"tokens": [1, HIDDEN, rows * columns], "grid": [1, 4, rows, columns]}
    for constant in model.graph.initializer:
        if constant.name in shapes:
            constant.CopyFrom(numpy_helper.from_array(np.array(shapes[constant.name]), constant.name))
    onnx.save(model, to)


def _sized(name: str) -> Component:
    return Component(f"{name}/model.onnx", sizes={str(WIDE): GraphFiles(f"{name}/wide.onnx")} if name in SIZED else {})


@pytest.fixture(scope="module")
def sized_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle for 16x16 and 32x16; not to be written to."""
    root = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("sized") / "phone"))
    for name in SIZED:
        _widen(root / name / "model.onnx", root / name / "wide.onnx")
    write_manifest(root, components={name: _sized(name) for name in COMPONENTS}, sizes=(PictureSize(SIZE, SIZE), WIDE))
    return root


@pytest.fixture(scope="module")
def wide_bundle(sized_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle for 32x16 alone; not to be written to."""
    root = Path(shutil.copytree(sized_bundle, tmp_path_factory.mktemp("wide") / "phone"))
    for name in SIZED:
        (root / name / "wide.onnx").rename(root / name / "model.onnx")
    write_manifest(root, sizes=(WIDE,), size=WIDE.width)
    return root


def _pixels(pipe: QuadPipeline, **arguments: Any) -> NDArray[np.uint8]:
    return np.asarray(pipe("remove the car", **arguments).images[0])


def _is_loaded(graph: Graph) -> bool:
    return graph._session is not None


@pytest.mark.parametrize("memory", ["keep-all", "balanced", "minimal"])
def test_a_size_is_the_bundle_of_that_size(
    memory: str, sized_bundle: Path, wide_bundle: Path, tiny_bundle: Path, picture: np.ndarray, mask: np.ndarray
) -> None:
    both = QuadPipeline.from_pretrained(sized_bundle, threads=1, memory=memory)
    alone = {
        width: QuadPipeline.from_pretrained(path, threads=1, memory=memory) for width, path in ((SIZE, tiny_bundle), (32, wide_bundle))
    }
    given: list[dict[str, Any]] = [
        {"task": "text-to-image"},
        {"task": "sketch", "image": picture},
        {"task": "removal", "image": picture, "mask_image": mask},
    ]
    for arguments in given:
        for width in (32, SIZE):
            made = _pixels(both, width=width, **arguments)
            np.testing.assert_array_equal(made, _pixels(alone[width], **arguments))
    assert both(task="text-to-image", height=16).images[0].size == (SIZE, SIZE)
    wide = both(task="text-to-image", width=32, height=16)
    assert (wide.images[0].size, wide.facts[0].size) == (WIDE, WIDE)
    assert _is_loaded(both.graph(WIDE_UNET)) == (memory != "minimal")
    assert _is_loaded(both.graph(OWN)) == (memory == "keep-all")  # `balanced` holds the U-Net of the latest size alone


def test_adapters_are_of_all_sizes(sized_bundle: Path) -> None:
    pipe = QuadPipeline.from_pretrained(sized_bundle, threads=1)
    base = [_pixels(pipe, task="text-to-image", width=width) for width in (SIZE, 32)]
    pipe.set_adapters("transform")
    a = [_pixels(pipe, task="text-to-image", width=width) for width in (SIZE, 32)]
    pipe.set_adapters("sketch")
    b = _pixels(pipe, task="text-to-image", width=32)
    pipe.set_adapters("transform")
    np.testing.assert_array_equal(_pixels(pipe, task="text-to-image", width=32), a[1])
    assert all((with_adapter != without).any() for with_adapter, without in zip(a, base, strict=True))
    assert (a[1] != b).any()
    pipe.disable_lora()
    np.testing.assert_array_equal(_pixels(pipe, task="text-to-image", width=32), base[1])


def test_what_is_active_is_what_the_latest_picture_had(sized_bundle: Path, picture: np.ndarray) -> None:
    pipe = QuadPipeline.from_pretrained(sized_bundle, threads=1)
    pipe("", task="sketch", image=picture, width=32)
    assert pipe.get_active_adapters() == ["sketch"]
    pipe("", task="text-to-image")
    assert pipe.get_active_adapters() == []


def test_sizes_and_latents_that_there_are_not(sized_bundle: Path) -> None:
    pipe = QuadPipeline.from_pretrained(sized_bundle, threads=1, memory="minimal")
    says = "width, height: expected one of the bundle's sizes, 16x16, 32x16, found 32x32; choose one, or build for another"
    with pytest.raises(UsageError, match=says):
        pipe("", width=32, height=32)
    with pytest.raises(InputError, match=r"latents: expected finite float32 \(1, 4, 4, 8\)"):
        pipe("", width=32, latents=np.zeros((1, 4, 4, 4), np.float32))
    with pytest.raises(InputError, match=r"latents: expected finite float32 \(1, 4, 4, 8\), found NaN or Inf"):
        pipe("", width=32, latents=np.full((1, 4, 4, 8), np.nan, np.float32))


@pytest.mark.parametrize(
    "changes",
    [
        {"sizes": (PictureSize(SIZE, SIZE), WIDE, PictureSize(64, 64))},  # a size without a graph
        {"sizes": (PictureSize(SIZE, SIZE),)},  # a graph of no size
        {"sizes": (PictureSize(SIZE, SIZE), WIDE, WIDE)},
        {"sizes": (WIDE, PictureSize(SIZE, SIZE))},  # the first is not the bundle's width
        {"components": {name: Component(f"{name}/model.onnx") for name in COMPONENTS}},
        {"components": {name: Component(f"{name}/model.onnx", sizes={str(WIDE): GraphFiles("unet/none.onnx")}) for name in COMPONENTS}},
        {"components": {name: Component(f"{name}/model.onnx", sizes={str(WIDE): GraphFiles("../wide.onnx")}) for name in COMPONENTS}},
    ],
)
def test_sizes_that_do_not_hold_together(changes: dict[str, Any], sized_bundle: Path, rewrite: Callable[..., None], tmp_path: Path) -> None:
    root = Path(shutil.copytree(sized_bundle, tmp_path / "phone"))
    complete = {"components": {name: _sized(name) for name in COMPONENTS}, "sizes": (PictureSize(SIZE, SIZE), WIDE)}
    rewrite(root, **complete)
    QuadPipeline.from_pretrained(root, memory="minimal")
    rewrite(root, **complete | changes)
    with pytest.raises(VerificationError):
        QuadPipeline.from_pretrained(root, memory="minimal")


def test_a_graph_of_other_slots_is_refused_for_any_size(sized_bundle: Path, rewrite: Callable[..., None], tmp_path: Path) -> None:
    root = Path(shutil.copytree(sized_bundle, tmp_path / "phone"))
    model = onnx.load(root / UNET / "wide.onnx")
    value = next(value for value in model.graph.input if value.name.endswith("lora_A"))
    value.type.tensor_type.shape.dim[0].dim_value += 1
    onnx.save(model, root / UNET / "wide.onnx")
    rewrite(root, components={name: _sized(name) for name in COMPONENTS}, sizes=(PictureSize(SIZE, SIZE), WIDE))
    with pytest.raises(VerificationError, match="lora_A"):
        QuadPipeline.from_pretrained(root, memory="minimal")
