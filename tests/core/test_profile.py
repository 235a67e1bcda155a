"""What a profile says of a component."""

from __future__ import annotations

import pytest

from quad.core.encoding import Encoding
from quad.core.profile import Profile


def of_bits(bits: int) -> Encoding:
    return Encoding(bits=bits, signed=True, symmetric=True, scale=(0.1,), zero_point=(0,), axis=None)


@pytest.mark.parametrize(
    ("name", "bits", "answer"),
    [
        ("a.in", 8, True),
        ("a.attn.p", 8, True),
        ("a.lora_mid", 8, True),
        ("a.in", 16, False),
        ("a.weight", 8, False),
        ("a.lora_B", 8, False),
    ],
)
def test_weights_and_slots_of_8_bits_are_no_activations(name: str, bits: int, answer: bool) -> None:
    profile = Profile(encodings={"unet": {name: of_bits(bits), "b.in": of_bits(16)}, "text_encoder": {"c.in": of_bits(8)}})
    assert profile.has_eight_bit_activations("unet") is answer
    assert not profile.has_eight_bit_activations("vae_decoder")
