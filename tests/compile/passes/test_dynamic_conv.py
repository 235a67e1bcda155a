"""A convolution whose filter a slot brings becomes slices and one product; a layer's stays."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from quad.compile.passes import run_passes
from quad.compile.passes.slots.dynamic_conv import DynamicConv
from tests.compile.passes.conftest import Sketch, kept, operators

CHANNELS, RANK = 3, 2


def convolution(kernel: tuple[int, int], size: tuple[int, int], *, slot: bool = True, **attributes: Any) -> ir.Model:
    sketch = Sketch()
    x = sketch.input("x", 1, CHANNELS, 6, 7)
    shape = (RANK, CHANNELS, *kernel)
    weight = sketch.input("fc.lora_A", *shape) if slot else sketch.noise("fc.weight", *shape)
    return sketch.model(sketch.value("Conv", [x, weight], 1, RANK, *size, **attributes))


@pytest.mark.parametrize(
    ("kernel", "size", "attributes"),
    [
        ((1, 1), (6, 7), {}),
        ((1, 1), (3, 4), {"strides": [2, 2]}),
        ((3, 3), (6, 7), {"pads": [1, 1, 1, 1]}),
        ((3, 3), (3, 4), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ((3, 2), (4, 8), {"pads": [0, 1, 0, 1]}),
        ((2, 3), (3, 2), {"pads": [0, 0, 1, 2], "strides": [2, 3], "dilations": [1, 2]}),
    ],
)
def test_a_slot_is_the_left_of_one_product(kernel: tuple[int, int], size: tuple[int, int], attributes: dict[str, Any]) -> None:
    after, _ = kept(convolution(kernel, size, **attributes), "dynamic_conv")
    census = operators(after)
    assert (census["Conv"], census["MatMul"], census["Pad"]) == (0, 1, "pads" in attributes)
    point = kernel == (1, 1) and not attributes
    assert census["Slice"] == (0 if point else kernel[0] * kernel[1])


def test_a_bias_is_added_behind() -> None:
    sketch = Sketch()
    operands = [sketch.input("x", 1, CHANNELS, 4, 4), sketch.input("fc.lora_A", RANK, CHANNELS, 3, 3), sketch.noise("fc.bias", RANK)]
    model = sketch.model(sketch.value("Conv", operands, 1, RANK, 2, 2))
    assert operators(kept(model, "dynamic_conv")[0])["Add"] == 1


def test_a_layer_stays_a_convolution() -> None:
    assert operators(kept(convolution((3, 3), (4, 5), slot=False), "dynamic_conv")[0]) == {"Conv": 1}


@pytest.mark.parametrize("attributes", [{"group": 3}, {"auto_pad": "SAME_UPPER"}])
def test_another_form_is_refused(attributes: dict[str, Any]) -> None:
    with pytest.raises(ir.passes.PassError, match="n0: a computed weight of another form"):
        run_passes(convolution((1, 1), (6, 7), **attributes), ["dynamic_conv"])


def test_its_promise_is_checked() -> None:
    with pytest.raises(ir.passes.PostconditionError, match="n0 still convolves two computed values"):
        DynamicConv().ensures(convolution((1, 1), (6, 7)))
