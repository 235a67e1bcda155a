"""The U-Net in two graphs: the whole one, which also gives its deep feature, and a shallow one, which takes it.

The deep feature is what enters the last up block from below. Only the first down block and the last up block see the largest resolution,
so that what lies between them is most of the network's weights and time, and it changes slowly from step to step. The shallow graph is cut
out of the placed one: its operators, scales and weights are the same, and so is its answer at the step that the feature is of.

Source: Ma et al. 2024 (DeepCache), section 3.3.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from quad.compile.artifact import MODEL_FILE, Artifact
from quad.compile.shared_weights import WEIGHTS_FILE, SharedWeights, point_into
from quad.core.errors import UnsupportedError, mismatch
from quad.core.extra_graphs import DEEP_FEATURE, SHALLOW_UNET
from quad.core.manifest import Component
from quad.core.slots import UNET
from quad.core.storage.files import writing_to

SHALLOW_FILE = "model.shallow.onnx"
_JOINED, _AXES = ("deep", "skip"), ("batch", "channels", "height", "width")


def write_with_shallow(folder: Path, artifact: Artifact) -> dict[str, Component]:
    """Write both graphs and their common weights into a new folder.

    Returns:
        Both components by name; names of files are relative to the folder's parent.

    Raises:
        UnsupportedError: the denoiser has no up blocks.
    """
    folder.mkdir(parents=True)
    with writing_to(folder / WEIGHTS_FILE), (folder / WEIGHTS_FILE).open("wb") as stream:
        weights, whole = SharedWeights(stream), artifact.graph()
        shallow = cut_shallow(whole)
        for model, name in ((whole, MODEL_FILE), (shallow, SHALLOW_FILE)):
            point_into(model.graph, weights, folder / WEIGHTS_FILE)
            ir.save(model, folder / name)
    data = (f"{folder.name}/{WEIGHTS_FILE}",)
    return {UNET: Component(f"{folder.name}/{MODEL_FILE}", data), SHALLOW_UNET: Component(f"{folder.name}/{SHALLOW_FILE}", data)}


def cut_shallow(whole: ir.Model) -> ir.Model:
    """The shallow graph of a placed U-Net, which gets the deep feature as its second output, in place.

    Raises:
        UnsupportedError: the denoiser has no up blocks.
    """
    shallow = whole.clone()
    _feed(shallow.graph)
    deep = _deep_feature(whole.graph)
    deep.name = DEEP_FEATURE
    whole.graph.outputs.append(deep)
    return shallow


def _deep_feature(graph: ir.Graph) -> ir.Value:
    """The value that enters the last up block from below: the first that is joined with a skip at the sample's own resolution.

    A norm reads what is joined. Names of weights would not do: equal ones are one.
    """
    sample = next(value for value in graph.inputs if value.name == "sample")
    for node in graph:
        joined = node.outputs[0]
        is_joint = node.op_type == "Concat" and len(node.inputs) == len(_JOINED) and _resolution(joined) == _resolution(sample)
        if is_joint and any(use.node.op_type == "GroupNormalization" for use in joined.uses()):
            deep = node.inputs[0]
            if deep is not None and deep.producer() is not None and deep.shape is not None:
                return deep
    raise UnsupportedError(mismatch("--reuse", "a U-Net with up blocks", f"{graph.name} without", "build without it"))


def _resolution(value: ir.Value) -> tuple[int | str | None, ...]:
    """Height and width of a picture's tensor; nothing of others."""
    axes = () if value.shape is None else tuple(axis.value if isinstance(axis, ir.SymbolicDim) else axis for axis in value.shape)
    return axes[2:] if len(axes) == len(_AXES) else ()


def _feed(graph: ir.Graph) -> None:
    """Make the deep feature an input, behind those that are no slots, and take out what nothing needs any more."""
    deep = _deep_feature(graph)
    given = ir.Value(name=DEEP_FEATURE, shape=deep.shape, type=ir.TensorType(ir.DataType.FLOAT))
    deep.replace_all_uses_with(given)
    slots = [place for place, value in enumerate(graph.inputs) if ".lora_" in str(value.name)]
    graph.inputs.insert(min(slots, default=len(graph.inputs)), given)
    for node in reversed(list(graph)):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
    for value in list(graph.inputs):
        if not value.uses():
            graph.inputs.remove(value)
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]
