"""Ports: what enters is what the encoding says, what leaves is what it means, and the timestep's waves are diffusers'."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from diffusers.models.embeddings import Timesteps
from hypothesis import given
from hypothesis import strategies as st

from quad.core.digests import canonical_json
from quad.core.encoding import encode_range
from quad.core.ports import Port, Ports, Sinusoid

FORMS = [(8, False, False), (16, False, False), (8, True, True), (16, True, True)]


def port(low: float, high: float, bits: int, signed: bool, symmetric: bool) -> Port:
    encoding = encode_range(low, high, bits=bits, signed=signed, symmetric=symmetric)
    return Port(encoding.dtype.name, encoding)


def test_ports_survive_json() -> None:
    ports = Ports(
        {
            "sample": port(-3, 5, 16, False, False),
            "timestep": Port("uint16", None, Sinusoid(channels=32, cosine_first=False, shift=1.0)),
            "input_ids": Port("int32"),
        },
        {"out": port(-1, 1, 8, False, False)},
    )
    assert msgspec.json.decode(canonical_json(ports), type=Ports) == ports


@pytest.mark.parametrize("text", [b'{"inputs": {}}', b'{"inputs": {}, "outputs": {}, "more": 1}', b'{"inputs": {"x": {}}, "outputs": {}}'])
def test_other_json_is_refused(text: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=Ports)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{'int' if form[1] else 'uint'}{form[0]}")
@given(low=st.floats(-100, 0), high=st.floats(0, 100), seed=st.integers(0, 99))
def test_within_its_range_a_value_errs_by_half_a_step(form: tuple[int, bool, bool], low: float, high: float, seed: int) -> None:
    one = port(low, high, *form)
    assert one.encoding is not None
    values = np.random.default_rng(seed).uniform(low, high, 50).astype(np.float32)
    integers = one.encode(values)
    assert integers.dtype == one.dtype
    step = one.encoding.scale[0]
    # An asymmetric zero point is rounded too: at the very ends that half step comes on top.
    ends = 0.5 * step * (not form[2])
    inside = (values >= low + ends) & (values <= high - ends)
    error = np.abs(values - one.decode(integers))
    assert (error[inside] <= step * 0.5 * (1 + 1e-3) + 1e-6 * max(-low, high)).all()
    assert (error <= step * 1.01 + 1e-6 * max(-low, high)).all()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{'int' if form[1] else 'uint'}{form[0]}")
def test_beyond_its_range_a_value_clips(form: tuple[int, bool, bool]) -> None:
    one = port(-2.0, 2.0, *form)
    found = one.decode(one.encode(np.array([-50.0, 50.0])))
    np.testing.assert_allclose(found, [-2.0, 2.0], atol=2 * one.encoding.scale[0])  # type: ignore[union-attr]


def test_what_was_decoded_is_encoded_to_itself() -> None:
    one = port(-3, 5, 16, False, False)
    integers = np.arange(0, 65536, 7, dtype=np.uint16)
    np.testing.assert_array_equal(one.encode(one.decode(integers)), integers)


def test_token_ids_pass_as_they_are() -> None:
    ids = np.array([[1, 49407, 0]], np.int64)
    found = Port("int32").encode(ids)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, ids)


@pytest.mark.parametrize(("channels", "shift"), [(2, 0.0), (64, 0.0), (320, 0.0), (64, 1.0), (320, 1.0)])
@pytest.mark.parametrize("cosine_first", [True, False])
def test_the_sinusoid_is_that_of_diffusers(channels: int, cosine_first: bool, shift: float) -> None:
    times = np.array([0.0, 1.0, 17.25, 498.5, 999.0], np.float32)
    expected = Timesteps(channels, flip_sin_to_cos=cosine_first, downscale_freq_shift=shift)(torch.from_numpy(times)).numpy()
    found = Sinusoid(channels=channels, cosine_first=cosine_first, shift=shift)(times)
    assert found.dtype == np.float32
    # Angles reach 999: one float32 step of a frequency moves them by up to 6e-5.
    np.testing.assert_allclose(found, expected, rtol=0, atol=7e-5)
    np.testing.assert_allclose(found[:2], expected[:2], rtol=0, atol=1e-6)
    assert np.abs(Sinusoid(channels=channels, cosine_first=not cosine_first, shift=shift)(times) - expected).max() > 0.5


def test_a_timestep_becomes_its_encoded_waves() -> None:
    unit = port(-1, 1, 16, False, False)
    assert unit.encoding is not None
    one = Port("uint16", unit.encoding, Sinusoid(channels=8))
    time = np.array([500.0], np.float32)
    found = one.encode(time)
    assert found.shape == (1, 8)
    np.testing.assert_allclose(one.decode(found), Sinusoid(channels=8)(time), atol=unit.encoding.scale[0] * 0.51)
