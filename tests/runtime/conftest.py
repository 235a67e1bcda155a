"""A whole bundle of a few kilobytes, made by hand: two slots, three adapters, four tasks, 16x16 pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace

from quad.core.digests import canonical_json, file_digest
from quad.core.manifest import (
    AdapterManifest,
    BundleManifest,
    Component,
    FileEntry,
    LatentSpec,
    NoiseSchedule,
    SamplerSpec,
    TaskSpec,
    TextSpec,
    seal,
)
from quad.core.padding import trim
from quad.core.ports import PORTS_FILE, Sinusoid
from quad.core.profile import Profile
from quad.runtime import Request, Scheduler, SchedulerOptions
from tests.runtime.held_pipeline import Clock, HeldPipeline
from tests.runtime.tiny_htp import save_htp_unet
from tests.runtime.tiny_litert import save_litert_text_encoder, save_litert_unet, save_litert_vae
from tests.runtime.tiny_unet import (
    FACTOR,
    HIDDEN,
    LATTICE,
    LENGTH,
    RANK,
    SIZE,
    UNIT,
    normalised_slots,
    save_graph,
    save_unet,
    tiny_slots,
    value,
)

SLOTS = tiny_slots(RANK)
PROFILE = Profile(encodings={"unet": dict.fromkeys(SLOTS.input_shapes(), LATTICE)})
COMPONENTS = ("unet", "text_encoder", "vae_encoder", "vae_decoder")
WORDS = ("[PAD]", "[UNK]", "remove", "the", "car", "make", "it", "night")


def _text_encoder(path: Path, rng: np.random.Generator, pooled_rows: int = 0) -> None:
    """A row of a table for each token; the prompt as a whole is its first rows, doubled."""
    constants: dict[str, NDArray[Any]] = {"table": rng.standard_normal((len(WORDS), HIDDEN)).astype(np.float32)}
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["rows" if pooled_rows else "last_hidden_state"])]
    if pooled_rows:
        constants |= {"first": np.array([0]), "last": np.array([pooled_rows]), "axis": np.array([1])}
        nodes += [
            helper.make_node("Slice", ["rows", "first", "last", "axis"], ["some"]),
            helper.make_node("Add", ["some", "some"], ["whole"]),
            helper.make_node("Concat", ["rows", "whole"], ["last_hidden_state"], axis=1),
        ]
    inputs = [value("input_ids", [1, LENGTH], TensorProto.INT64)]
    save_graph(path, "text_encoder", nodes, inputs, value("last_hidden_state", [1, LENGTH + pooled_rows, HIDDEN]), constants)


def _vae(root: Path, rng: np.random.Generator) -> None:
    side = SIZE // FACTOR
    down = {"w": rng.standard_normal((4, 3, FACTOR, FACTOR)).astype(np.float32) / 8}
    nodes = [helper.make_node("Conv", ["image", "w"], ["latent"], strides=[FACTOR, FACTOR])]
    picture, latent = value("image", [1, 3, SIZE, SIZE]), value("latent", [1, 4, side, side])
    save_graph(root / "vae_encoder/model.onnx", "vae_encoder", nodes, [picture], latent, down)
    up = {"w": rng.standard_normal((4, 3, FACTOR, FACTOR)).astype(np.float32)}
    nodes = [helper.make_node("ConvTranspose", ["latent", "w"], ["image"], strides=[FACTOR, FACTOR])]
    save_graph(root / "vae_decoder/model.onnx", "vae_decoder", nodes, [latent], picture, up)


def _tokenizer(path: Path) -> None:
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    path.parent.mkdir()
    tokenizer.save(str(path))


def adapter_tensors(seed: int, rank: int) -> dict[str, NDArray[Any]]:
    """Integers of an adapter of `rank`, zero-padded to the slots' rank."""
    rng = np.random.default_rng(seed)
    tensors = {name: rng.integers(-3000, 3001, shape).astype(np.int16) for name, shape in SLOTS.input_shapes().items()}
    for slot in SLOTS.slots:
        tensors[slot.a_name][rank:] = 0
        tensors[slot.b_name][:, rank:] = 0
    return tensors


def adapter_manifest(name: str, rank: int) -> AdapterManifest:
    parents = {"slots": SLOTS.digest, "profile": PROFILE.digest}
    return AdapterManifest(name=name, format_version=1, rank=rank, bits=16, size_bytes=0, sha256="", parents=parents)


def _adapter(folder: Path, manifest: AdapterManifest, tensors: dict[str, NDArray[Any]]) -> None:
    folder.mkdir(parents=True)
    file = folder / "adapter.safetensors"
    save_file(tensors, file)
    written = msgspec.structs.replace(manifest, sha256=file_digest(file), size_bytes=file.stat().st_size)
    (folder / "adapter.json").write_bytes(canonical_json(written))


TASKS = {
    "text-to-image": TaskSpec(adapter=None, sampler=SamplerSpec(kind="euler", steps=3), condition="none", mask="ones"),
    "transform": TaskSpec(adapter="transform", sampler=SamplerSpec(kind="ddim", steps=2), condition="image", mask="zeros"),
    "removal": TaskSpec(adapter="removal", sampler=SamplerSpec(kind="ddim", steps=2), condition="masked-image", mask="input"),
    "sketch": TaskSpec(adapter="sketch", sampler=SamplerSpec(kind="euler", steps=2), condition="image", mask="ones", guidance=2.0),
}


def write_manifest(root: Path, **changes: Any) -> None:
    """`bundle.json` over the files that lie there, sealed."""
    files = {
        path.relative_to(root).as_posix(): FileEntry(file_digest(path), path.stat().st_size)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "bundle.json"
    }
    manifest = BundleManifest(
        format_version=1,
        name="phone",
        target="cpu",
        precision="w8a16",
        size=SIZE,
        components={name: Component(f"{name}/model.onnx") for name in COMPONENTS},
        files=files,
        adapters=("transform", "removal", "sketch"),
        tasks=TASKS,
        schedule=NoiseSchedule(),
        latent=LatentSpec(channels=4, factor=FACTOR, scale=(1.0,) * 4, shift=(0.0,) * 4),
        text=TextSpec(length=LENGTH, pad_id=0, hidden=HIDDEN),
        engines=("ort", "openvino"),
        parents={"base": "0" * 64, "slots": SLOTS.digest, "profile": PROFILE.digest},
        quad_version="0.1.0",
    )
    (root / "bundle.json").write_bytes(canonical_json(seal(msgspec.structs.replace(manifest, **changes))))


def make_bundle(root: Path) -> Path:
    """Write the bundle into a new directory."""
    rng = np.random.default_rng(0)
    save_unet(root / "unet/model.onnx")
    _text_encoder(root / "text_encoder/model.onnx", rng)
    _vae(root, rng)
    _tokenizer(root / "tokenizer/tokenizer.json")
    for seed, (name, rank) in enumerate({"transform": 2, "removal": 2, "sketch": 4}.items()):
        _adapter(root / "adapters" / name, adapter_manifest(name, rank), trim(adapter_tensors(seed, rank), SLOTS))
    (root / "slots.json").write_bytes(canonical_json(SLOTS))
    (root / "profile.json").write_bytes(canonical_json(PROFILE))
    write_manifest(root)
    return root


NORMALISED_SLOTS = normalised_slots(RANK)
NORMALISED_PROFILE = Profile(
    encodings={
        "unet": {
            name: msgspec.structs.replace(LATTICE, scale=((1.0 if name == slot.a_name else UNIT) / 32767,))
            for slot in NORMALISED_SLOTS.slots
            for name in (slot.a_name, slot.b_name)
        }
    }
)


def normalised_tensors(seed: int, rank: int) -> dict[str, NDArray[Any]]:
    """An adapter of normalised slots, as a file holds it."""
    tensors = trim(adapter_tensors(seed, rank), SLOTS)
    scales = np.random.default_rng(seed).uniform(0.05, 1.0, (len(SLOTS.slots), rank)).astype(np.float32)
    return tensors | {slot.scale_name: each for slot, each in zip(SLOTS.slots, scales, strict=True)}


def normalised_manifest(name: str, rank: int, profile: Profile = NORMALISED_PROFILE) -> AdapterManifest:
    parents = {"slots": NORMALISED_SLOTS.digest, "profile": profile.digest}
    return msgspec.structs.replace(adapter_manifest(name, rank), parents=parents)


def make_normalised(tiny_bundle: Path, root: Path, profile: Profile = NORMALISED_PROFILE) -> Path:
    """The tiny bundle with normalised slots, in a new directory."""
    shutil.copytree(tiny_bundle, root)
    shutil.rmtree(root / "unet")
    save_unet(root / "unet/model.onnx", normalised=True)
    for seed, (name, rank) in enumerate({"transform": 2, "removal": 2, "sketch": 4}.items()):
        shutil.rmtree(root / "adapters" / name)
        _adapter(root / "adapters" / name, normalised_manifest(name, rank, profile), normalised_tensors(seed, rank))
    (root / "slots.json").write_bytes(canonical_json(NORMALISED_SLOTS))
    (root / "profile.json").write_bytes(canonical_json(profile))
    write_manifest(root, parents={"base": "0" * 64, "slots": NORMALISED_SLOTS.digest, "profile": profile.digest})
    return root


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole bundle; not to be written to."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "phone")


@pytest.fixture(scope="session")
def normalised_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle with normalised slots; not to be written to."""
    return make_normalised(tiny_bundle, tmp_path_factory.mktemp("normalised") / "phone")


@pytest.fixture(scope="session")
def sized_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle of a model that hears the prompt as a whole and the picture's sizes, as SDXL; not to be written to."""
    root = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("sized") / "phone"))
    text = TextSpec(
        length=LENGTH, pad_id=0, hidden=HIDDEN, pooled=HIDDEN + 1, sizes=Sinusoid(channels=HIDDEN // 2 * 2 - 2), zeros_for_empty=True
    )
    for name in ("unet", "text_encoder"):
        shutil.rmtree(root / name)
    save_unet(root / "unet/model.onnx", rows=text.rows)
    _text_encoder(root / "text_encoder/model.onnx", np.random.default_rng(0), text.pooled_rows)
    write_manifest(root, text=text)
    return root


@pytest.fixture(scope="session")
def htp_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle with a binary for its U-Net; not to be written to."""
    pytest.importorskip("onnxruntime_qnn")
    root = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("htp") / "phone"))
    shutil.rmtree(root / "unet")
    save_htp_unet(root / "unet/model.onnx", RANK)
    shutil.rmtree(root / "placed")
    beside = tuple(f"unet/{name}" for name in ("model_qnn.bin", PORTS_FILE))
    components = {name: Component(f"{name}/model.onnx", beside if name == "unet" else ()) for name in COMPONENTS}
    write_manifest(root, target="qnn-htp", engines=("qnn",), components=components)
    return root


@pytest.fixture(scope="session")
def litert_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle for LiteRT, all four graphs; not to be written to."""
    pytest.importorskip("ai_edge_litert")
    root, rng = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("litert") / "phone")), np.random.default_rng(0)
    for name in COMPONENTS:
        shutil.rmtree(root / name)
    save_litert_unet(root / "unet/model.tflite", RANK)
    save_litert_text_encoder(root / "text_encoder/model.tflite", rng.standard_normal((len(WORDS), HIDDEN)))
    save_litert_vae(root, rng)
    components = {name: Component(f"{name}/model.tflite", (f"{name}/{PORTS_FILE}",)) for name in COMPONENTS}
    write_manifest(root, target="litert", engines=("litert",), components=components)
    return root


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that a test may change."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "phone"))


@pytest.fixture
def rewrite() -> Callable[..., None]:
    """`rewrite(root, **changes)`: write and seal `bundle.json` anew, as a publisher would."""
    return write_manifest


@pytest.fixture
def forge() -> Callable[[Path, dict[str, Any]], None]:
    """`forge(root, changes)`: change fields of `bundle.json` and leave the seal as it was."""

    def change(root: Path, changes: dict[str, Any]) -> None:
        path = root / "bundle.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes, sort_keys=True, separators=(",", ":")))

    return change


@pytest.fixture
def ink() -> tuple[AdapterManifest, dict[str, NDArray[Any]]]:
    """An adapter that is not in the bundle, and fits it."""
    return adapter_manifest("ink", 2), adapter_tensors(9, 2)


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    """A picture of the bundle's own size."""
    return np.random.default_rng(3).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)


@pytest.fixture
def mask() -> NDArray[np.uint8]:
    """A mask of the bundle's own size: 4x5 pixels inside."""
    plane = np.zeros((SIZE, SIZE), np.uint8)
    plane[5:9, 6:11] = 255
    return plane


@pytest.fixture
def held(tiny_bundle: Path) -> HeldPipeline:
    """A pipeline whose steps a test can stop."""
    opened = HeldPipeline.from_pretrained(tiny_bundle, engine="ort", threads=1)
    assert isinstance(opened, HeldPipeline)
    return opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def scheduler(held: HeldPipeline, clock: Clock) -> Iterator[Scheduler]:
    """A scheduler on the held pipeline; closed when the test is over."""
    made = Scheduler(held, SchedulerOptions(max_queue=50, most_overtaken=3, clock=clock))
    yield made
    if held.held:
        held.free()
    made.close()


@pytest.fixture
def requests(picture: NDArray[np.uint8], mask: NDArray[np.uint8]) -> list[Request]:
    """All tasks, a mix, the base by name, guidance on and off."""
    return [
        Request(prompt="the car", seed=1),
        Request(prompt="make it night", task="transform", image=picture, seed=2),
        Request(prompt="remove the car", task="removal", image=picture, mask_image=mask, seed=3),
        Request(prompt="the car", task="sketch", image=picture, seed=4, negative_prompt="night"),
        Request(prompt="the car", task="text-to-image", adapters={"transform": 0.5, "removal": 0.25}, seed=5),
        Request(prompt="the car", task="sketch", adapters={}, image=picture, guidance_scale=1.0, seed=6),
    ]
