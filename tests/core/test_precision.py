"""`--precision` as a share of sites at 8 bits; which sites wait until the end."""

from __future__ import annotations

import pytest

from quad.core.errors import UsageError
from quad.core.precision import eight_bit_percent, has_four_bits, precision_kind
from quad.quantize.encodings.rules import RULES, keeps_16_bits, rule_for, with_eight_bit
from quad.quantize.profile.pooled_profile import encode_site


@pytest.mark.parametrize(
    ("word", "percent"),
    [
        ("w8a16", 0),
        ("mixed:0", 0),
        ("mixed:80", 80),
        ("mixed:12.5", 12.5),
        ("mixed:100", 100),
        ("w8a8", 100),
        ("float", None),
        ("w4a16", 0),
    ],
)
def test_shares(word: str, percent: float | None) -> None:
    assert eight_bit_percent(word) == percent
    assert precision_kind(word) == word.split(":")[0]


def test_shares_beside_weights_of_4_bits() -> None:
    assert eight_bit_percent("w4:mixed:80") == 80
    assert precision_kind("w4:mixed:80") == "w4:mixed"
    assert [has_four_bits(word) for word in ("w4a16", "w4:mixed:80", "w8a16", "mixed:80", "float")] == [True, True, False, False, False]


@pytest.mark.parametrize("word", ["mixed:-1", "mixed:101", "mixed:100.5", "mixed:", "mixed", "mixed:x", "mixed:nan", "mixed:5 "])
def test_a_share_outside_0_to_100_is_refused_in_one_line(word: str) -> None:
    with pytest.raises(UsageError, match=rf"^--precision: expected mixed:P with P from 0 to 100, found '{word}'; as in mixed:80$"):
        eight_bit_percent(word)


@pytest.mark.parametrize("word", ["w2a2", "", "w8a16:3", "w4:w8a16", "w4:float"])
def test_other_words_are_refused_with_the_list(word: str) -> None:
    with pytest.raises(UsageError, match=r"w8a16 \| w8a8 \| w4a16 \| mixed:P \| w4:mixed:P \| float"):
        eight_bit_percent(word)


def test_what_goes_last() -> None:
    last = ("conv_in.in", "conv_out.in", "a.attn1.q", "a.attn2.p", "time_embedding.linear_1.in", "a.time_emb_proj.in", "a.lora_mid")
    assert all(map(keeps_16_bits, last))
    assert not any(map(keeps_16_bits, ("mid_block.resnets.0.conv1.in", "a.attn1.to_q.in", "a.proj_in.in", "up.conv_shortcut.in_skip")))


def test_operands_of_integer_products_are_centred_and_softmax_has_the_range_it_has() -> None:
    rules = with_eight_bit(["a.q", "a.p", "b.in"], products=True)
    found = {name: rule_for("unet", name, rules) for name in ("a.q", "a.p", "b.in")}
    assert {name: (rule.bits, rule.shape, rule.fixed) for name, rule in found.items() if rule is not None} == {
        "a.q": (8, "centred", None), "a.p": (8, "asymmetric", None), "b.in": (8, "asymmetric", None),
    }  # fmt: skip


def test_only_the_named_sites_of_the_unet_change() -> None:
    rules = with_eight_bit(["a.in", "b.p"])
    bits = {name: rule.bits for name in ("a.in", "c.in", "b.p", "a.weight") if (rule := rule_for("unet", name, rules))}
    assert bits == {"a.in": 8, "c.in": 16, "b.p": 8, "a.weight": 8}
    assert rule_for("vae_decoder", "a.in", rules) == rule_for("vae_decoder", "a.in", RULES)
    softmax = rule_for("unet", "b.p", rules)
    assert softmax is not None
    assert softmax.fixed == (0.0, 1.0)


def test_the_lora_middle_has_room() -> None:
    wide, plain, narrow = (rule_for("unet", name, with_eight_bit(["b.lora_mid"])) for name in ("a.lora_mid", "a.in", "b.lora_mid"))
    assert wide is not None and plain is not None and narrow is not None  # noqa: PT018
    assert encode_site(wide, (-1.0, 2.0)).scale[0] == pytest.approx(8.0 * encode_site(plain, (-2.0, 2.0)).scale[0], rel=1e-6)
    assert (narrow.bits, narrow.margin.factor) == (8, 4.0)
