"""Admission: a frozen bundle stays as it is, what is admitted is what a build would have bound, what does not fit is refused by slot."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from quad.admit.request import AdaptRequest, AdaptResult
from quad.align import with_base as admit_base
from quad.align.adapt import adapt
from quad.align.with_base import BaseNetworks, open_base
from quad.build.admission_data import STORED, Corrections
from quad.build.build import BuildRequest, build
from quad.core.decibels import relative_error
from quad.core.digests import canonical_json, file_digest
from quad.core.errors import CompatibilityError, InputError, QuadError, UnsupportedError, UsageError, VerificationError
from quad.core.manifest import BUNDLE_FILE, PROBES_FILE, seal
from quad.core.profile import Profile
from quad.core.slots import NORMALISED, SEARCHED, SlotMode
from quad.core.storage.pack import read_pack
from quad.lora.fit.channel_gains import smooth_adapter
from quad.lora.fit.integers import quantize_adapter
from quad.model.adapters import read_adapter
from quad.model.base.open import Base
from quad.quantize.correct.simulate import simulated
from quad.runtime.adapters.buffers import Buffers, pad, zero_buffers
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import Bundle, open_bundle
from quad.runtime.engines.engine import open_engine
from quad.runtime.engines.ort import OrtSession
from quad.runtime.golden_outputs import check_golden, golden, read_probes, unet_buffers
from quad.runtime.pipeline import QuadPipeline
from tests.build.samples import SAMPLES, run
from tests.small_model import write_lora

QUIET = 0.3
LOUDER = (1.0, 1.25, 1.5)  # at twice it, the slots clip
SLOTS: dict[str, SlotMode] = {"w8a16": NORMALISED, "mixed:60": SEARCHED}
ENDINGS = ("attn1.to_q", "conv_in", "attn2.to_v")


@pytest.fixture(scope="module", params=["w8a16", "mixed:60"])
def phone(
    model_dir: Path, adapter_files: dict[str, Path], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """A frozen bundle, of either kind of slots; with 8-bit sites its norms are equalized and its skips split."""
    place, slots = tmp_path_factory.mktemp("frozen") / "phone", SLOTS[request.param]
    build(BuildRequest(model_dir, adapter_files, place, samples=SAMPLES, precision=request.param, slots=slots, distill_steps=0))
    return open_bundle(place)


@pytest.fixture(scope="module")
def lora(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another LoRA, of modules that have slots, quieter than those of the bundle."""
    place = tmp_path_factory.mktemp("later")
    write_lora(place / "loud.safetensors", base.unet, 2, ENDINGS, 7)
    return changed(place / "loud.safetensors", place / "ink.safetensors", QUIET)


@pytest.fixture
def asked(phone: Bundle, lora: Path, tmp_path: Path) -> AdaptRequest:
    return AdaptRequest(phone.root, "ink", lora, output=tmp_path / "ink.qpack", task="ink", like="transform")


@pytest.fixture(scope="module")
def admitted(phone: Bundle, lora: Path, tmp_path_factory: pytest.TempPathFactory) -> AdaptResult:
    """That LoRA, admitted without the base; its pack is not to be changed."""
    pack = tmp_path_factory.mktemp("admitted") / "ink.qpack"
    return adapt(AdaptRequest(phone.root, "ink", lora, output=pack, task="ink", like="transform"))


def digests(root: Path) -> dict[str, str]:
    return {str(file.relative_to(root)): file_digest(file) for file in sorted(root.rglob("*")) if file.is_file()}


def unet(bundle: Bundle) -> Any:
    return open_engine("ort", (), bundle.manifest.precision).load(bundle.graph("unet"), 1)


def bound(session: Any, bundle: Bundle, buffers: Buffers) -> Any:
    session.bind(unet_buffers(bundle, buffers))
    return session


def changed(lora: Path, place: Path, factor: float = 1.0, **tensors: torch.Tensor) -> Path:
    """The LoRA with its up-projections `factor` times as large, and more tensors."""
    held = {name: tensor * (factor if "lora_B" in name else 1.0) for name, tensor in load_file(lora).items()}
    save_file({**held, **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}, place)
    return place


def test_a_build_stores_calls_and_goldens(phone: Bundle) -> None:
    probes, session, store = read_probes(phone), unet(phone), AdapterStore(phone)
    assert len(probes) == STORED
    assert len({float(call["timestep"][0]) for call in probes}) > 1
    for name in store.names:
        check_golden(bound(session, phone, store.buffers(name)), phone, store.manifest(name))
        others = [store.zeros, *(store.buffers(other) for other in store.names if other != name)]
        for other in others:
            with pytest.raises(VerificationError, match="its golden output"):
                check_golden(bound(session, phone, other), phone, store.manifest(name))


def test_nothing_of_the_bundle_is_touched(asked: AdaptRequest, model_dir: Path) -> None:
    before = digests(asked.bundle)
    adapt(asked)
    adapt(replace(asked, base=model_dir, samples=SAMPLES, distill_steps=2))
    assert digests(asked.bundle) == before


def test_what_is_admitted_is_what_a_build_would_have_bound(phone: Bundle, adapter_files: dict[str, Path], tmp_path: Path) -> None:
    again = adapt(AdaptRequest(phone.root, "again", adapter_files["transform"], output=tmp_path / "again.qpack", task="transform"))
    built = AdapterStore(phone).buffers("transform")
    found = pad(read_pack(again.pack).tensors, zero_buffers(phone.slots))
    assert found.keys() == built.keys()
    for name, array in built.items():
        np.testing.assert_array_equal(found[name], array, name)
    one, other = QuadPipeline.from_pretrained(phone.root, threads=1), QuadPipeline.from_pretrained(phone.root, threads=1)
    other.load_lora_weights(again.pack)
    assert other.tasks["transform"].adapter == "again"
    np.testing.assert_array_equal(run(one, "transform"), run(other, "transform"))


def test_its_integers_are_those_of_the_frozen_profile(admitted: AdaptResult, lora: Path, phone: Bundle, base: Base) -> None:
    adapter = read_adapter("ink", lora, base.unet)
    gains = phone.profile.gains.get("unet", {})
    expected = quantize_adapter(smooth_adapter(adapter, gains), phone.slots, phone.profile)
    found = Buffers(pad(read_pack(admitted.pack).tensors, zero_buffers(phone.slots)))
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, name)
    if phone.manifest.precision != "w8a16":
        plain = quantize_adapter(adapter, phone.slots, phone.profile)
        assert gains
        assert any(not np.array_equal(plain[name], array) for name, array in expected.items())


def test_its_task_runs_and_its_golden_tells_it_from_others(admitted: AdaptResult, phone: Bundle) -> None:
    pipe = QuadPipeline.from_pretrained(phone.root, threads=1)
    pipe.set_adapters(pipe.load_lora_weights(admitted.pack))
    assert pipe.tasks["ink"] == msgspec.structs.replace(pipe.tasks["transform"], adapter="ink")
    sample = next(sample for sample in SAMPLES if sample.task == "transform")
    assert pipe(sample.prompt, task="ink", image=sample.image, seed=3).images[0].size == (phone.manifest.size,) * 2
    check_golden(pipe.graph("unet"), phone, admitted.manifest)
    session, store = unet(phone), AdapterStore(phone)
    for buffers in (store.zeros, *map(store.buffers, store.names)):
        with pytest.raises(VerificationError, match="adapter 'ink' on probe"):
            check_golden(bound(session, phone, buffers), phone, admitted.manifest)
    assert admitted.manifest.parents == {**AdapterStore(phone).manifest("transform").parents, "source": admitted.manifest.parents["source"]}


def test_without_the_base_it_says_what_was_not_checked(admitted: AdaptResult) -> None:
    said = admitted.to_json()
    assert "output_db" not in said["quality"]
    assert any("--base" in line for line in said["unchecked"])
    assert said["trial"]["sites"] > 0
    assert 0.0 <= said["quality"]["lost"] <= 1.0
    assert set(said["trial"]["others"]) == {"transform", "removal"}


def test_with_the_base_its_quality_is_measured(asked: AdaptRequest, model_dir: Path) -> None:
    rescaled = adapt(replace(asked, base=model_dir, samples=SAMPLES, distill_steps=0))
    quality = rescaled.to_json()["quality"]
    assert quality["effect_gain"] == pytest.approx(1.0, abs=0.2)
    # The simulated network and the bundle's own graph agree on how good it is.
    assert quality["output_db"] == pytest.approx(rescaled.alignment["after_rescale_db"], abs=1.0)
    softer = changed(asked.adapter, asked.output.with_name("softer.safetensors"), 0.8)  # its activations stay in range on any processor
    trained = adapt(replace(asked, adapter=softer, base=model_dir, samples=SAMPLES, distill_steps=10, prompts=("a red house",)))
    assert trained.alignment["steps"] == 10
    assert not any("--base" in line for line in trained.unchecked)


def without_sixteen_bit_activations(phone: Bundle, place: Path) -> Path:
    """The frozen graph with nothing rounded but weights and what has 8 bits: 16-bit steps are so fine that float sums cross them."""
    model = ir.load(phone.graph("unet"))
    for node in list(model.graph):
        if node.op_type == "QuantizeLinear" and "16" in str(node.inputs[2].dtype):
            for reader in list(node.outputs[0].consumers()):
                reader.outputs[0].replace_all_uses_with(node.inputs[0], replace_graph_outputs=True)
    ir.save(model, place)
    return place


def apart(phone: Bundle, graph: Path, model_dir: Path, lora: Path, draws: int = 4) -> list[float]:
    """How far the network made again is from the frozen graph, without an adapter: on each stored call, and with other noise in it.

    A CPU rounds of activations what has 8 bits and a kernel: so is the network here.

    Args:
        draws: of noise for each stored call.
    """
    base, encodings = open_base(phone, model_dir), phone.profile.component("unet")
    student = BaseNetworks.of(phone, base, {}, read_adapter("ink", lora, base.unet)).pair.student
    kept = {
        name: one for name, one in encodings.items()
        if name.endswith(".weight") or (one.bits == 8 and name.endswith((".in", ".in_skip")))
    }  # fmt: skip
    session: OrtSession = open_engine("ort", (), phone.manifest.precision).load(graph, 1)
    session.bind(unet_buffers(phone, zero_buffers(phone.slots)))
    rng, found = np.random.default_rng(0), []
    for call in [call for call in read_probes(phone) for _ in range(draws)]:
        noisy = {**call, "sample": (call["sample"] + 0.1 * rng.standard_normal(call["sample"].shape)).astype(np.float32)}
        tensors = [torch.from_numpy(noisy[name].copy()) for name in ("sample", "timestep", "encoder_hidden_states")]
        with torch.no_grad(), simulated(student, Profile(encodings={"unet": kept}), "unet"):
            found.append(relative_error(session.run(noisy), student(*tensors, {}).numpy()))
    return found


def test_the_student_is_the_network_that_was_frozen(
    phone: Bundle, model_dir: Path, lora: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Corrected biases, gains, split skips and compensated weights are all taken up again; with any of them left out it would show."""
    bound = 3e-6  # of the best call, the order of float sums: on most, 15 of 16, a value crosses a rounding edge of 8 bits
    graph = without_sixteen_bit_activations(phone, tmp_path / "model.onnx")
    right, given = apart(phone, graph, model_dir, lora, draws=24), admit_base._corrections(phone)
    assert min(right) < bound, right
    left_out = [("_corrections", Corrections({}, given.gains, given.compensated)), ("_corrections", Corrections(given.biases, given.gains))]
    if phone.manifest.precision == "w8a16":
        assert max(right) < bound, right  # there are no such edges
    else:
        assert given.gains
        left_out += [("_corrections", Corrections(given.biases, {}, given.compensated)), ("_is_split", False)]
    for name, value in left_out:
        with monkeypatch.context() as patch:
            patch.setattr(admit_base, name, lambda _, value=value: value)
            wrong = apart(phone, graph, model_dir, lora)
            assert min(wrong) > 100 * bound, (name, wrong)  # on every call; least without biases, which find little to mend by now


def test_the_autoencoder_is_the_one_that_was_given(phone: Bundle, model_dir: Path, tmp_path: Path) -> None:
    assert open_base(phone, model_dir, model_dir / "vae").picture_size == phone.manifest.picture_size
    other = shutil.copytree(model_dir / "vae", tmp_path / "vae")
    weights = next(other.glob("*.safetensors"))
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(CompatibilityError, match="of which the bundle was built"):
        open_base(phone, model_dir, other)


def test_where_the_graph_does_not_tell_its_weights_nothing_is_trained(
    asked: AdaptRequest, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a chip's binary: what was simulated would not be what runs."""
    monkeypatch.setattr(admit_base, "stored_weights", lambda *_: {})
    admitted = adapt(replace(asked, base=model_dir, samples=SAMPLES, distill_steps=10))
    assert any("cannot be read out of its graph" in note for note in admitted.notes)
    assert not admitted.alignment
    assert admitted.to_json()["quality"]["output_db"] > 10


def test_the_teacher_is_the_base(phone: Bundle, model_dir: Path, lora: Path) -> None:
    base = open_base(phone, model_dir)
    teacher = BaseNetworks.of(phone, base, {}, read_adapter("ink", lora, base.unet)).pair.teacher
    for call in read_probes(phone):
        tensors = [torch.from_numpy(call[name].copy()) for name in ("sample", "timestep", "encoder_hidden_states")]
        with torch.no_grad():
            np.testing.assert_allclose(teacher(*tensors, {}), base.unet(*tensors).sample, atol=1e-5)


def test_a_rank_over_the_slots_is_cut_and_told(asked: AdaptRequest, base: Base, tmp_path: Path) -> None:
    file = tmp_path / "wide.safetensors"
    write_lora(file, base.unet, 6, ENDINGS, 8)
    file = changed(file, tmp_path / "narrow.safetensors", 0.25)
    admitted = adapt(replace(asked, adapter=file, min_energy=0.0))
    assert any("reduced to their slot's rank" in note for note in admitted.notes)
    cut = [one for one in admitted.slots if one.rank > one.slot_rank]
    assert cut
    assert all(0.0 < one.energy < 1.0 for one in cut)
    assert admitted.manifest.rank == max(one.slot_rank for one in admitted.slots)
    with pytest.raises(CompatibilityError, match=r"that do not: .* \(keeps 0\.\d+ of its update at rank \d, 0\.999 is asked for\)"):
        adapt(replace(asked, adapter=file, min_energy=0.999, output=tmp_path / "none.qpack"))
    assert not (tmp_path / "none.qpack").exists()


def test_each_unfit_slot_is_named_with_its_reason(asked: AdaptRequest, phone: Bundle, tmp_path: Path) -> None:
    if phone.slots.normalised:
        pytest.skip("no adapter is too loud or too fine for such slots: tests/admit/test_normalised.py")
    loud = changed(asked.adapter, tmp_path / "loud.safetensors", 1e4)
    with pytest.raises(CompatibilityError, match=r"conv_in \(\S+% of its weights clipped, [AB] is \S+ times the frozen range\)"):
        adapt(replace(asked, adapter=loud))
    faint = changed(asked.adapter, tmp_path / "faint.safetensors", 1e-9)
    with pytest.raises(CompatibilityError, match=r"too fine for the frozen steps"):
        adapt(replace(asked, adapter=faint))
    # Nothing at all is learnt: it would be the base under another name.
    with pytest.raises(CompatibilityError, match="an update of the network, found zeros alone"):
        adapt(replace(asked, adapter=changed(asked.adapter, tmp_path / "zero.safetensors", 0.0)))
    assert not asked.output.exists()


def test_activations_that_their_ranges_cut_off_are_named(asked: AdaptRequest, phone: Bundle, tmp_path: Path) -> None:
    if phone.manifest.precision == "w8a16":
        pytest.skip("16 bits leave room for it")

    def admit_louder() -> None:
        """Ever louder: the processor's rounding decides which sites have 8 bits, and so how loud is too loud."""
        for factor in LOUDER:
            loud = changed(asked.adapter, tmp_path / f"loud{factor}.safetensors", factor / QUIET)
            adapt(replace(asked, adapter=loud))
            asked.output.unlink()

    with pytest.raises(CompatibilityError, match=r"lose more: up_blocks\S+ \(\S+% of its energy, up to 1\.\d+ of the range\)"):
        admit_louder()
    assert not asked.output.exists()


def test_targets_without_a_slot_are_listed(asked: AdaptRequest, base: Base, tmp_path: Path) -> None:
    file = tmp_path / "more.safetensors"
    write_lora(file, base.unet, 2, (*ENDINGS, "conv_out"), 7)
    with pytest.raises(CompatibilityError, match="targets among the bundle's slots, found conv_out without one"):
        adapt(replace(asked, adapter=file))


def test_dora_is_admitted_with_the_base_alone(asked: AdaptRequest, model_dir: Path, base: Base, tmp_path: Path) -> None:
    norms = base.unet.conv_in.weight.detach().flatten(1).norm(dim=1)
    file = changed(asked.adapter, tmp_path / "dora.safetensors", unet__conv_in__lora_magnitude_vector=norms)
    with pytest.raises(UnsupportedError, match="give it: --base MODEL"):
        adapt(replace(asked, adapter=file))
    admitted = adapt(replace(asked, adapter=file, base=model_dir, samples=SAMPLES, distill_steps=0, min_energy=0.1))
    assert any("converted" in note for note in admitted.notes)


def test_another_model_is_no_base(asked: AdaptRequest, model_dir: Path, tmp_path: Path) -> None:
    import shutil

    other = shutil.copytree(model_dir, tmp_path / "other")
    held = load_file(next((other / "unet").glob("*.safetensors")))
    held["conv_in.bias"] = held["conv_in.bias"] + 1.0
    save_file(held, next((other / "unet").glob("*.safetensors")), {"format": "pt"})
    with pytest.raises(CompatibilityError, match=r"--base .*of which the bundle was built"):
        adapt(replace(asked, base=other, samples=SAMPLES))


def test_an_older_bundle_is_told_to_be_built_again(asked: AdaptRequest, phone: Bundle, tmp_path: Path) -> None:
    import shutil

    old = shutil.copytree(phone.root, tmp_path / "old")
    (old / PROBES_FILE).unlink()
    files = {name: entry for name, entry in phone.manifest.files.items() if name != PROBES_FILE}
    (old / BUNDLE_FILE).write_bytes(canonical_json(seal(msgspec.structs.replace(phone.manifest, files=files))))
    with pytest.raises(CompatibilityError, match="of an older build; build it again"):
        adapt(replace(asked, bundle=old))


def _foreign(place: Path) -> Path:
    save_file({"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": torch.ones(2, 8)}, place)
    return place


HOSTILE: dict[str, tuple[dict[str, Any], type[QuadError], str]] = {
    "another base": ({"adapter": _foreign}, InputError, "one for Flux"),
    "a pickle": ({"adapter": lambda place: place.with_suffix(".ckpt")}, InputError, "a pickled file"),
    "no file": ({"adapter": lambda place: place}, InputError, "no such file"),
    "a name that climbs": ({"name": "../ink"}, UsageError, "a name of letters"),
    "the base's name": ({"name": "base"}, UsageError, "other than base"),
    "an unknown task": ({"like": None}, UsageError, "--like TASK"),
    "unlike any": ({"like": "sing"}, UsageError, "a task of the bundle"),
    "steps without a base": ({"distill_steps": 5}, UsageError, "--base MODEL"),
    "an energy over 1": ({"min_energy": 1.5}, UsageError, "--min-energy"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_cannot_be_is_refused_in_one_line(case: str, asked: AdaptRequest, tmp_path: Path) -> None:
    change, error, says = HOSTILE[case]
    given = {key: value(tmp_path / "x.safetensors") if callable(value) else value for key, value in change.items()}
    with pytest.raises(error, match=says) as caught:
        adapt(replace(asked, **given))
    assert str(caught.value).isprintable()
    assert not asked.output.exists()


def test_the_pack_is_not_written_into_the_bundle(asked: AdaptRequest) -> None:
    with pytest.raises(UsageError, match="outside of the bundle, which is frozen"):
        adapt(replace(asked, output=asked.bundle / "adapters" / "ink.qpack"))


def test_a_golden_is_the_same_wherever_it_is_taken(asked: AdaptRequest, phone: Bundle) -> None:
    said = adapt(asked).manifest.golden
    assert said is not msgspec.UNSET
    buffers = Buffers(pad(read_pack(asked.output).tensors, zero_buffers(phone.slots)))
    found = golden("here", bound(unet(phone), phone, buffers), read_probes(phone)[said.probe], said.probe)
    assert found.values == pytest.approx(said.values, abs=said.tolerance)
