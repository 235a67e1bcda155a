"""A pack that was made for another bundle of the same model is rounded anew; what was packed for neither is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from quad.admit.admit import admit
from quad.admit.repack import unpacked
from quad.admit.request import AdaptRequest, AdaptResult
from quad.core.errors import CompatibilityError, VerificationError
from quad.core.sampling import AdapterDefaults
from quad.runtime.bundle import open_bundle
from tests.admit.frozen import freeze, write_later_lora
from tests.runtime.conftest import write_manifest


@pytest.fixture(scope="module")
def normalised(normalised_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the same model as `frozen`, whose slots are normalised."""
    return freeze(normalised_bundle, tmp_path_factory.mktemp("normalised") / "phone")


def packed(bundle: Path, place: Path) -> AdaptResult:
    """A LoRA as a pack for a bundle, and its file beside it."""
    lora, output = write_later_lora(place / "ink.safetensors", 0.1), place / f"{bundle.parent.name}.qpack"
    defaults = AdapterDefaults(guidance=2.5)
    return admit(AdaptRequest(bundle, "ink", lora, output=output, task="ink", like="transform", defaults=defaults))


@pytest.mark.parametrize(("first", "second"), [("frozen", "normalised"), ("normalised", "frozen"), ("normalised", "normalised")])
def test_it_is_the_same_adapter_in_another_bundles_numbers(first: str, second: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source, target = (request.getfixturevalue(name) for name in (first, second))
    pack = packed(source, tmp_path)
    again = admit(AdaptRequest(target, "ink", pack.pack, output=tmp_path / "again.qpack", packed_for=source, task="ink", like="transform"))
    assert again.manifest.parents["source"] == pack.manifest.parents["source"]
    assert again.manifest.parents["profile"] == open_bundle(target).profile.digest
    assert again.manifest.defaults == pack.manifest.defaults
    assert any("rounded a second time" in note for note in again.notes)
    floats = load_file(tmp_path / "ink.safetensors")
    for path, pair in unpacked("ink", again.pack, target, open_bundle(target)).weights.items():
        a, b = (floats[f"unet.{path}.lora_{side}.weight"].astype(np.float64) for side in "AB")
        true, ours = (y.reshape(len(y), -1) @ x.reshape(len(x), -1) for x, y in ((a, b), (pair.a, pair.b)))
        assert np.linalg.norm(ours - true) < 0.01 * np.linalg.norm(true)


def test_a_bundle_of_another_model_is_refused(frozen: Path, normalised: Path, tmp_path: Path) -> None:
    pack, other = packed(frozen, tmp_path), tmp_path / "other"
    shutil.copytree(normalised, other)
    write_manifest(other, parents={**open_bundle(normalised).manifest.parents, "base": "1" * 64})
    with pytest.raises(CompatibilityError, match=r"--packed-for .*: expected a bundle of the model 11111111"):
        admit(AdaptRequest(other, "ink", pack.pack, output=tmp_path / "no.qpack", packed_for=frozen))
    assert not (tmp_path / "no.qpack").exists()


def test_a_pack_of_a_third_bundle_is_refused(frozen: Path, normalised: Path, tmp_path: Path) -> None:
    pack = packed(frozen, tmp_path)
    with pytest.raises(CompatibilityError, match="was packed for slots"):
        admit(AdaptRequest(frozen, "ink", pack.pack, output=tmp_path / "no.qpack", packed_for=normalised))


def test_a_lora_is_no_pack_and_a_changed_one_is_none_either(frozen: Path, normalised: Path, tmp_path: Path) -> None:
    pack = packed(frozen, tmp_path).pack
    with pytest.raises(VerificationError, match="expected a pack"):
        admit(AdaptRequest(normalised, "ink", tmp_path / "ink.safetensors", output=tmp_path / "no.qpack", packed_for=frozen))
    data = bytearray(pack.read_bytes())
    data[-1] ^= 1
    pack.write_bytes(bytes(data))
    with pytest.raises(VerificationError, match="digest"):
        admit(AdaptRequest(normalised, "ink", pack, output=tmp_path / "no.qpack", packed_for=frozen))
