"""Golden outputs: the right adapter passes, another, a changed one or a broken bundle is told apart in one line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save

from quad.core.errors import CompatibilityError, VerificationError
from quad.core.manifest import PROBES_FILE, AdapterManifest, Golden
from quad.runtime.bundle import Bundle, open_bundle
from quad.runtime.golden_outputs import GRID, block_means, calls_of, check_golden, distance, golden, read_probes

CALL = {
    "sample": np.ones((1, 9, 4, 4), np.float32),
    "timestep": np.array([500], np.float32),
    "encoder_hidden_states": np.ones((1, 8, 16), np.float32),
}


class Answering:
    """A session that answers with what it was given."""

    inputs: Mapping[str, tuple[int | None, ...]] = {}

    def __init__(self, output: NDArray[Any]) -> None:
        self.output = output

    def bind(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Nothing is bound."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        return self.output


def picture(seed: int, side: int = 8) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((1, 4, side, side)).astype(np.float32)


def manifest(said: Golden | msgspec.UnsetType) -> AdapterManifest:
    return AdapterManifest(name="ink", format_version=1, rank=4, bits=16, size_bytes=0, sha256="", parents={}, golden=said)


@pytest.fixture
def with_probes(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The hand-made bundle, as if two calls were stored in it."""
    monkeypatch.setattr("quad.runtime.golden_outputs.read_probes", lambda _: (CALL, CALL))
    return open_bundle(tiny_bundle)


@given(st.integers(0, 10**6), st.integers(1, 20))
def test_block_means_keep_the_mean_of_every_channel(seed: int, side: int) -> None:
    output = picture(seed, GRID * side)
    means = block_means(output).reshape(4, -1)
    assert means.shape == (4, GRID * GRID)
    np.testing.assert_allclose(means.mean(axis=1), output.mean(axis=(0, 2, 3)), atol=1e-5)


def test_a_block_mean_is_of_its_block_alone() -> None:
    before = picture(0)
    after = before.copy()
    after[0, 2, 0, 7] += 8.0
    changed = np.flatnonzero(block_means(after) != block_means(before))
    assert changed.tolist() == [2 * GRID * GRID + GRID - 1]


def test_outputs_of_fewer_pixels_than_blocks_have_a_block_a_pixel() -> None:
    np.testing.assert_allclose(block_means(picture(0, 2)), picture(0, 2).ravel(), rtol=1e-6)


def test_the_answer_it_was_made_of_passes_and_another_does_not(with_probes: Bundle) -> None:
    session = Answering(picture(0))
    said = golden("here", session, CALL, 1)
    check_golden(session, with_probes, manifest(said))
    check_golden(Answering(picture(0) * np.float32(1 + 1e-4)), with_probes, manifest(said))
    with pytest.raises(VerificationError, match=r"adapter 'ink' on probe 1: expected its golden output within .* away"):
        check_golden(Answering(picture(1)), with_probes, manifest(said))


def test_a_manifest_without_a_golden_output_passes(with_probes: Bundle) -> None:
    check_golden(Answering(picture(3)), with_probes, manifest(msgspec.UNSET))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_answer_that_is_not_finite_is_refused(with_probes: Bundle, value: float) -> None:
    said = golden("here", Answering(picture(0)), CALL, 0)
    with pytest.raises(VerificationError, match="NaN or Inf"):
        check_golden(Answering(np.full((1, 4, 8, 8), value, np.float32)), with_probes, manifest(said))


def test_a_golden_of_another_shape_or_probe_is_refused(with_probes: Bundle) -> None:
    session = Answering(picture(0))
    said = golden("here", session, CALL, 0)
    with pytest.raises(VerificationError, match="inf away"):
        check_golden(session, with_probes, manifest(msgspec.structs.replace(said, values=said.values[:-1])))
    with pytest.raises(VerificationError, match="a probe 7, found 2 of them"):
        check_golden(session, with_probes, manifest(msgspec.structs.replace(said, probe=7)))


def test_the_manifest_of_an_older_build_has_the_same_bytes() -> None:
    assert b"golden" not in msgspec.json.encode(manifest(msgspec.UNSET))
    assert b"quality" not in msgspec.json.encode(manifest(msgspec.UNSET))


def test_a_bundle_of_an_older_build_is_told_to_be_built_again(tiny_bundle: Path) -> None:
    with pytest.raises(CompatibilityError, match="of an older build; build it again"):
        read_probes(open_bundle(tiny_bundle))


def test_distance_is_the_largest_difference() -> None:
    assert distance(Golden(0, (1.0, 2.0), 0.1), np.array([1.0, 2.5])) == 0.5


STRANGE: dict[str, dict[str, NDArray[Any]]] = {
    "nothing": {},
    "another name": {"0/sample": CALL["sample"], "0/timestep": CALL["timestep"], "0/words": CALL["encoder_hidden_states"]},
    "a gap": {f"{i}/{name}": array for i in (0, 2) for name, array in CALL.items()},
    "not finite": {f"0/{name}": array * np.float32(np.inf) for name, array in CALL.items()},
    "integers": {f"0/{name}": array.astype(np.int32) for name, array in CALL.items()},
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_file_that_holds_something_else_is_refused(case: str, tmp_path: Path) -> None:
    (tmp_path / PROBES_FILE).write_bytes(save(STRANGE[case]))
    with pytest.raises(VerificationError, match="expected finite float32 <i>/sample"):
        calls_of(tmp_path / PROBES_FILE)
