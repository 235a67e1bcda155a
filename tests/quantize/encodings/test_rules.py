"""Rules: who gets headroom, and that an adapter several times as loud stays inside of it."""

from __future__ import annotations

import numpy as np
import pytest

from quad.core.encoding import Encoding
from quad.core.margins import ACTIVATION, HEADROOM
from quad.quantize.encodings.histogram import Histogram, pool
from quad.quantize.encodings.rules import RULES, rule_for, weight_bits, with_eight_bit, with_fine_tables, with_headroom
from quad.quantize.profile.pooled_profile import UnifyOptions, site_encoding

BLOCK = "mid_block.attentions.0.transformer_blocks.0.attn1"
ROOMY = (f"{BLOCK}.q", f"{BLOCK}.k", f"{BLOCK}.v", f"{BLOCK}.to_out.0.in")
OTHERS = (f"{BLOCK}.p", f"{BLOCK}.to_q.in", f"{BLOCK}.to_q.lora_mid", f"{BLOCK}.to_q.weight", "conv_in.in")
VALUES = np.linspace(-1.0, 3.0, 1001, dtype=np.float32)


def encoding(name: str, component: str = "unet") -> Encoding:
    """Of a site with such values, by the rules with headroom."""
    histogram = Histogram()
    histogram.add(VALUES)
    chosen = site_encoding(component, name, pool([histogram]), UnifyOptions(rules=with_headroom(RULES)))
    assert chosen is not None
    return chosen


@pytest.mark.parametrize("name", ROOMY)
def test_attention_that_is_eight_times_as_loud_as_calibration_saw_it_is_not_cut_off(name: str) -> None:
    loudest = VALUES * ACTIVATION.factor * HEADROOM.factor
    roomy, step = encoding(name), encoding(name).scale[0]
    np.testing.assert_allclose(roomy.dequantize(roomy.quantize(loudest)), loudest, atol=0.51 * step)
    plain = encoding(name, "text_encoder")
    assert np.abs(plain.dequantize(plain.quantize(loudest)) - loudest).max() > 1.0


@pytest.mark.parametrize("name", OTHERS)
def test_all_other_tensors_keep_their_rule(name: str) -> None:
    assert rule_for("unet", name, with_headroom(RULES)) == rule_for("unet", name, RULES)


@pytest.mark.parametrize("name", ROOMY)
def test_a_site_of_8_bits_has_none(name: str) -> None:
    rules = with_eight_bit([name])
    assert rule_for("unet", name, with_headroom(rules)) == rule_for("unet", name, rules)


@pytest.mark.parametrize("path", ["text_encoder.clip_g.text_model.embeddings.token_embedding", "text_encoder.shared"])
def test_token_tables_have_a_byte_an_entry_or_two_where_none_is_read_by_columns(path: str) -> None:
    fine = rule_for("text_encoder", f"{path}.weight", with_fine_tables(RULES))
    assert fine is not None
    assert (weight_bits("text_encoder", path), fine.bits, fine.shape) == (8, 16, "asymmetric")
    assert [now for rule, now in zip(RULES, with_fine_tables(RULES), strict=True) if now != rule and rule.shape != "column"] == []
