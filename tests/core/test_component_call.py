"""Calls of a network, and a batch as calls of one row."""

from __future__ import annotations

import numpy as np
import pytest

from quad.core.component_call import UNET_INPUTS, ComponentCall, of_component, split_batch


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, None])
def test_a_split_batch_joins_again_and_every_row_has_the_timestep(rows: int, steps: int | None) -> None:
    sample, text = np.arange(rows * 4.0).reshape(rows, 1, 2, 2), np.arange(rows * 6.0).reshape(rows, 2, 3)
    parts = split_batch({"sample": sample, "timestep": np.full(steps or rows, 7.0), "encoder_hidden_states": text})
    assert len(parts) == rows
    assert all(tuple(part) == UNET_INPUTS for part in parts)
    assert np.array_equal(np.concatenate([part["sample"] for part in parts]), sample)
    assert np.array_equal(np.concatenate([part["encoder_hidden_states"] for part in parts]), text)
    assert all(np.array_equal(part["timestep"], [7.0]) for part in parts)


def test_a_call_feeds_inputs_and_slots_and_belongs_to_one_component() -> None:
    unet = ComponentCall(source="ink", inputs={"sample": np.zeros(1)}, slots={"a.lora_A": np.ones(1)})
    text = ComponentCall(component="text_encoder", source="base", inputs={"input_ids": np.zeros((1, 4))})
    assert unet.feed.keys() == {"sample", "a.lora_A"}
    assert of_component([unet, text], "unet") == [unet]
    assert of_component([unet, text], "text_encoder") == [text]
