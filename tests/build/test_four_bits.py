"""Weights of 4 bits: the base corrected in its slots, whatever adapter is bound beside it and with whatever weight."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from quad.admit.request import AdaptRequest
from quad.align.adapt import adapt
from quad.build.build import BuildRequest, build
from quad.build.extra_graphs import tiny_decoder
from quad.build.four_bits import choose_layers
from quad.build.result import BuildResult
from quad.compile.passes.integers.four_bit_matmul import NIBBLES
from quad.core.decibels import relative_error
from quad.core.errors import UnsupportedError, UsageError, VerificationError
from quad.core.extra_graphs import TINY_DECODER
from quad.core.manifest import BASE_CORRECTION_FILE
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import open_bundle
from quad.runtime.pipeline import QuadPipeline
from tests.build.samples import SAMPLES

Latents = NDArray[np.float32]


def _request(model_dir: Path, adapters: dict[str, Path], output: Path, rank: int | None = 2) -> BuildRequest:
    return BuildRequest(model_dir, adapters, output, samples=SAMPLES, precision="w4a16", correction_rank=rank)


@pytest.fixture(scope="module")
def built(model_dir: Path, adapter_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    """With a tiny decoder, hardly trained; corrections as many as half of the layers have room for."""
    request = _request(model_dir, adapter_files, tmp_path_factory.mktemp("four") / "phone")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(tiny_decoder, "STEPS", 5)
        monkeypatch.setattr(choose_layers, "CORRECTED", 0.5)
        monkeypatch.setattr(choose_layers, "correction_share", lambda layer, rank: 0.9)  # by the rule so small layers get 8 bits
        return build(replace(request, tiny_decoder=True))


@pytest.fixture(scope="module")
def pipe(built: BuildResult) -> QuadPipeline:
    return QuadPipeline.from_pretrained(built.bundle, threads=1)


def _call(pipe: QuadPipeline, **adapters: float) -> Latents:
    graph, draw = pipe.graph("unet"), np.random.default_rng(0)
    pipe.set_adapters(list(adapters), list(adapters.values()))
    names = ("sample", "timestep", "encoder_hidden_states")
    inputs = {name: draw.standard_normal([n or 1 for n in graph.inputs[name]]).astype(np.float32) for name in names}
    return np.asarray(graph.run({**inputs, "timestep": np.array([400.0], np.float32)}), np.float32)


def _in_half_bytes(file: Path) -> set[str]:
    """Constants whose integers have 4 bits by their type, or lie two in a byte."""
    graph = onnx.load(str(file), load_external_data=False).graph
    packed = {value.name for value in graph.value_info if NIBBLES in {entry.key for entry in value.metadata_props}}
    return {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.UINT4 or tensor.name in packed}


def test_weights_lie_in_half_a_byte(built: BuildResult) -> None:
    bundle = open_bundle(built.bundle)
    encodings = {name: encoding.bits for name, encoding in bundle.profile.component("unet").items() if name.endswith(".weight")}
    stored = _in_half_bytes(bundle.graph("unet"))
    four = [name for name, bits in encodings.items() if bits == 4]
    assert len(four) > len(encodings) / 2
    assert encodings["conv_in.weight"] == encodings["conv_out.weight"] == 16
    # A gated layer without a slot lies in two halves, under other names.
    halves = {name for name in four if name not in stored}
    assert all(name.endswith("ff.net.0.proj.weight") for name in halves)


def test_text_encoder_and_the_autoencoders_encoder_have_4_bits_too(built: BuildResult) -> None:
    """And a token table a byte an entry, with a range for each of its columns; the decoder of pictures keeps 8 bits."""
    bundle = open_bundle(built.bundle)
    assert 4 not in {encoding.bits for encoding in bundle.profile.component("vae_decoder").values()}
    for component in ("text_encoder", "vae_encoder"):
        encodings = bundle.profile.component(component)
        four = {name for name, encoding in encodings.items() if encoding.stored_as == "uint4"}
        assert four, component
        assert four <= _in_half_bytes(bundle.graph(component))
    (table,) = (name for name in bundle.profile.component("text_encoder") if name.endswith("token_embedding.weight"))
    encoding = bundle.profile.component("text_encoder")[table]
    assert (encoding.bits, encoding.axis) == (8, 1)


def test_some_layers_of_4_bits_have_a_corrected_slot(built: BuildResult) -> None:
    bundle = open_bundle(built.bundle)
    corrected = {slot.path for slot in bundle.slots.slots if slot.rank > slot.adapter_rank}
    narrow = {name.removesuffix(".weight") for name, encoding in bundle.profile.component("unet").items() if encoding.bits == 4}
    assert corrected
    assert corrected < narrow
    assert any(slot.adapter_rank == 0 for slot in bundle.slots.slots)


def test_the_correction_brings_the_base_nearer(built: BuildResult, model_dir: Path, adapter_files: dict[str, Path], tmp_path: Path) -> None:
    plain = build(_request(model_dir, adapter_files, tmp_path / "plain", rank=0))
    assert not open_bundle(plain.bundle).slots.corrected
    for case, error in built.smoke["unet"].items():
        assert error < plain.smoke["unet"][case], case


def test_a_weight_is_the_adapters_alone(pipe: QuadPipeline) -> None:
    """Effects of weights are in proportion, and the base, corrected, is where they begin."""
    base, half, whole = (_call(pipe, transform=weight) if weight else _call(pipe) for weight in (0.0, 0.5, 1.0))
    tiny = _call(pipe, transform=1e-4)
    assert relative_error(tiny, base) < 0.01 * relative_error(whole, base)
    assert 0.4 < relative_error(half, base) / relative_error(whole, base) < 0.6


def test_a_then_b_then_a_and_the_base_again(pipe: QuadPipeline) -> None:
    base, first = _call(pipe), _call(pipe, transform=1.0)
    _call(pipe, removal=1.0)
    np.testing.assert_array_equal(_call(pipe, transform=1.0), first)
    np.testing.assert_array_equal(_call(pipe), base)


def test_two_adapters_lie_beside_one_correction(pipe: QuadPipeline) -> None:
    base, one, other = _call(pipe), _call(pipe, transform=1.0), _call(pipe, removal=1.0)
    both = _call(pipe, transform=1.0, removal=1.0)
    sum_of_effects = one + other - base
    assert relative_error(both, sum_of_effects) < 0.5 * max(relative_error(both, one), relative_error(both, other))
    nearly = _call(pipe, transform=1.0, removal=1e-4)
    assert relative_error(nearly, one) < 0.01 * relative_error(one, base) + 1e-3


def test_a_later_adapter_is_admitted_and_names_the_correction(built: BuildResult, adapter_files: dict[str, Path], tmp_path: Path) -> None:
    bundle = open_bundle(built.bundle)
    result = adapt(AdaptRequest(built.bundle, "later", adapter_files["transform"], output=tmp_path / "later.qpack", task="transform"))
    assert result.manifest.parents["correction"] == bundle.manifest.files[BASE_CORRECTION_FILE].sha256
    pipe = QuadPipeline.from_pretrained(built.bundle, threads=1)
    pipe.load_lora_weights(tmp_path / "later.qpack", adapter_name="later")
    np.testing.assert_allclose(_call(pipe, later=1.0), _call(pipe, transform=1.0), atol=1e-5)


def test_with_the_model_at_hand_an_adapter_is_rounded_anew(
    built: BuildResult, model_dir: Path, adapter_files: dict[str, Path], tmp_path: Path
) -> None:
    """Not trained: the simulated base has the graph's weights and its correction, so it answers as the graph does."""
    place, samples = tmp_path / "later.qpack", [sample for sample in SAMPLES if sample.task == "transform"]
    lora = adapter_files["transform"]
    result = adapt(AdaptRequest(built.bundle, "later", lora, output=place, task="transform", base=model_dir, samples=samples))
    assert result.alignment["after_rescale_db"] == pytest.approx(result.manifest.quality.output_db, abs=0.5)  # type: ignore[union-attr]
    pipe = QuadPipeline.from_pretrained(built.bundle, threads=1)
    pipe.load_lora_weights(place, adapter_name="later")
    np.testing.assert_allclose(_call(pipe, later=1.0), _call(pipe, transform=1.0), atol=1e-5)


def test_a_tiny_decoder_keeps_its_8_bits(built: BuildResult, pipe: QuadPipeline) -> None:
    bits = {encoding.bits for name, encoding in open_bundle(built.bundle).profile.component(TINY_DECODER).items() if "weight" in name}
    assert 4 not in bits
    picture = pipe("a red house", task="text-to-image", sampler="ddim:2", tiny_decoder=True, output_type="np").images
    assert np.isfinite(picture).all()


def test_an_adapters_file_holds_nothing_of_the_correction(built: BuildResult) -> None:
    slots = open_bundle(built.bundle).slots.by_path()
    for file in (built.bundle / "adapters").glob("*/adapter.safetensors"):
        for name, array in load_file(file).items():
            if name.endswith(".lora_A"):
                assert len(array) <= slots[name.removesuffix(".lora_A")].adapter_rank


def test_a_changed_correction_is_refused(built: BuildResult, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in built.bundle.rglob("*"):
        if file.is_file():
            place = copy / file.relative_to(built.bundle)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    data = bytearray((copy / BASE_CORRECTION_FILE).read_bytes())
    data[-1] ^= 1
    (copy / BASE_CORRECTION_FILE).write_bytes(bytes(data))
    with pytest.raises(VerificationError, match=BASE_CORRECTION_FILE):
        open_bundle(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "w8a16", "correction_rank": 8}, "--correction-rank: expected --precision w4a16"),
        ({"correction_rank": 5000}, "--correction-rank: expected 0 to 1024"),
        ({"slots": "searched"}, "--slots: expected normalised with w4a16"),
    ],
)
def test_options_that_do_not_fit(model_dir: Path, tmp_path: Path, change: dict[str, object], message: str) -> None:
    request = BuildRequest(model_dir, {}, tmp_path / "no", **{"precision": "w4a16", **change})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        build(request)


def test_a_target_that_does_not_take_it_says_so(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="w4a16"):
        build(BuildRequest(model_dir, {}, tmp_path / "no", precision="w4a16", target="litert"))


def test_a_pack_of_the_8_bit_bundle_is_rounded_anew(
    built: BuildResult, model_dir: Path, adapter_files: dict[str, Path], tmp_path: Path
) -> None:
    """Not trained again: what comes is the adapter that this bundle was built with."""
    request = replace(_request(model_dir, adapter_files, tmp_path / "eight", rank=None), precision="w8a16")
    eight = build(request).bundle
    request = AdaptRequest(built.bundle, "later", eight / "adapters/transform", output=tmp_path / "later.qpack", packed_for=eight)
    result = adapt(replace(request, task="transform"))
    own = open_bundle(built.bundle)
    assert result.manifest.parents["source"] == AdapterStore(own).manifest("transform").parents["source"]
    assert result.manifest.parents["correction"] == own.manifest.files[BASE_CORRECTION_FILE].sha256
    pipe = QuadPipeline.from_pretrained(built.bundle, threads=1)
    pipe.load_lora_weights(tmp_path / "later.qpack", adapter_name="later")
    base, first, later = _call(pipe), _call(pipe, transform=1.0), _call(pipe, later=1.0)
    assert relative_error(later, first) < 0.02 * relative_error(first, base)
