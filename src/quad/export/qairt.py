"""A bundle for Qualcomm's own LoRA tools, in the mode without updatable quantization: all adapters share the encodings.

    OUT/COMPONENT.onnx                          float; slots are constants under their names, as the first adapter that has them says
    OUT/COMPONENT.encodings-1.0.0.json, -2.0.0  one file for all adapters; slots are parameters in the former
    OUT/COMPONENT.lora_weight_list.txt          names of the constants that an adapter replaces, one a line
    OUT/NAME.COMPONENT.safetensors              the constants of one adapter, float32, every slot: the numbers that its integers stand for
    OUT/COMPONENT.lora_config.yaml              the adapters as use cases, with these files

Of normalised slots the one input of scales and its Split become a constant for each slot, `PATH.lora_scale` (rank,), under the encoding of
that input: a converter would fold a Split of a constant, and with it the name that an adapter replaces.

Made of the float graphs and encodings that a build for `qnn-htp` writes beside its bundle (`quad.compile.qnn.aimet_files`).
Source: the files that AIMET's LoRA export (aimet_onnx, experimental) writes for QAIRT, and Qualcomm's LoRA v3 pages. Neither the converter
nor the importer was at hand: checked is what the files hold, not that the tools take them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from safetensors.numpy import save

from quad.compile.artifact import save_graph
from quad.compile.qnn.aimet_files import VERSION_1, VERSION_2
from quad.core.digests import canonical_json
from quad.core.errors import InputError, UnsupportedError, mismatch
from quad.core.padding import slot_scales
from quad.core.progress import Progress, silent
from quad.core.slots import SlotTable
from quad.core.storage.directories import new_directory, require_replaceable
from quad.core.storage.files import real_path, write_bytes, writing_to
from quad.export.bundle_graph import require_slots
from quad.export.ort_adapters import EXPORT_FILE
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import Bundle, open_bundle

FORMAT = "qairt"
Floats = NDArray[np.float32]


def export_qairt(bundle: Path, output: Path, encodings: Path | None = None, progress: Progress = silent) -> dict[str, Any]:
    """Write graphs, encodings and adapters; the bundle is only read.

    Args:
        encodings: the directory that the build wrote beside the bundle; `BUNDLE.qairt` by default.

    Returns:
        The content of `export.json`.

    Raises:
        UnsupportedError: the bundle is of another target.
        InputError: the directory is not there, or of another build. BackendError: the disk is full.
    """
    require_replaceable(output, EXPORT_FILE)
    opened = open_bundle(bundle)
    if opened.manifest.target != "qnn-htp":
        raise UnsupportedError(
            mismatch(f"bundle {opened.name!r}", "a bundle for qnn-htp", opened.manifest.target, "build it for that target")
        )
    require_slots(opened)
    source = encodings or Path(f"{real_path(bundle)}.qairt")
    store = AdapterStore(opened)
    adapters = {name: adapter_floats(opened, store, name) for name in store.names}
    components = opened.slots.components
    with new_directory(output, EXPORT_FILE) as stage:
        for index, component in enumerate(components):
            progress(component, index / len(components))
            _write_component(opened.slots.of(component), adapters, source, stage)
        described = {"format": FORMAT, "bundle": opened.manifest.sha256, "adapters": list(adapters), "components": list(components)}
        write_bytes(stage / EXPORT_FILE, canonical_json(described))
    return described


def adapter_floats(bundle: Bundle, store: AdapterStore, name: str) -> dict[str, Floats]:
    """Every constant of an adapter as the numbers that its integers stand for; zeros where it has no slot."""
    buffers, slots = store.buffers(name), bundle.slots
    floats: dict[str, Floats] = {}
    for component in slots.components:
        encodings = bundle.profile.component(component)
        inputs = slots.of(component).input_shapes()
        floats |= {key: encodings[key].dequantize(buffers[key]) for key in inputs}
    scales = slot_scales(floats, slots)
    return floats | {slot.scale_name: scales[slot.path] for slot in slots.slots if slot.path in scales}


def constant_shapes(slots: SlotTable) -> dict[str, tuple[int, ...]]:
    """Shapes of the constants that an adapter replaces, in slot order: A, B, and of normalised slots the scales `(rank,)`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for slot in slots.slots:
        shapes |= {slot.a_name: slot.a_shape, slot.b_name: slot.b_shape}
        if slots.normalised:
            shapes[slot.scale_name] = (slot.rank,)
    return shapes


def _write_component(slots: SlotTable, adapters: Mapping[str, Mapping[str, Floats]], source: Path, stage: Path) -> None:
    component, names = slots.slots[0].component, list(constant_shapes(slots))
    encodings = [f"{component}.encodings-{version}.json" for version in (VERSION_1, VERSION_2)]
    for needed in (f"{component}.onnx", *encodings):
        if not (source / needed).is_file():
            hint = "name the directory that the build wrote beside the bundle: --encodings DIR"
            raise InputError(mismatch(str(source), f"a file {needed}", "none", hint))
    model = ir.load(source / f"{component}.onnx")
    first = {name: next((tensors[name] for tensors in adapters.values() if tensors[name].any()), None) for name in names}
    parts = scale_for_each_slot(model, slots)
    slots_to_constants(model, slots, first)
    with writing_to(stage):
        save_graph(model, stage / f"{component}.onnx")
    for file in encodings:
        content = _as_parameters(_for_each_slot(json.loads((source / file).read_bytes()), parts), set(names))
        write_bytes(stage / file, (json.dumps(content, indent=1) + "\n").encode())
    write_bytes(stage / f"{component}.lora_weight_list.txt", "".join(f"{name}\n" for name in names).encode())
    for adapter, tensors in adapters.items():
        write_bytes(stage / f"{adapter}.{component}.safetensors", save({name: tensors[name] for name in names}))
    write_bytes(stage / f"{component}.lora_config.yaml", _use_cases(component, adapters, encodings[0]).encode())


def slots_to_constants(model: ir.Model, slots: SlotTable, values: Mapping[str, Floats | None]) -> None:
    """Make constants of a graph's slot inputs, in place; what has no value becomes zeros.

    Raises:
        InputError: the graph has other slots.
    """
    inputs = {str(value.name): value for value in model.graph.inputs}
    for name, shape in constant_shapes(slots).items():
        if name not in inputs or tuple(inputs[name].shape or ()) != shape:
            hint = "name the directory that was written with this bundle: --encodings DIR"
            raise InputError(mismatch(f"graph {model.graph.name}", f"an input {name} {shape}", "none", hint))
        given = values[name]
        inputs[name].const_value = ir.tensor(np.zeros(shape, np.float32) if given is None else given, name=name)
        model.graph.register_initializer(inputs[name])
        model.graph.inputs.remove(inputs[name])


def scale_for_each_slot(model: ir.Model, slots: SlotTable) -> dict[str, dict[str, str]]:
    """Give a graph of normalised slots an input of scales for each slot in place of the one for all, in place.

    Returns:
        Name of the input that is gone -> part of it, as the graph called it -> the input of that slot.

    Raises:
        InputError: the graph has other slots.
    """
    inputs, parts = {str(value.name): value for value in model.graph.inputs}, {}
    for name, members in slots.scale_inputs().items():
        readers = inputs[name].consumers() if name in inputs else ()
        if len(readers) != 1 or readers[0].op_type != "Split" or len(readers[0].outputs) != len(members):
            hint = "name the directory that was written with this bundle: --encodings DIR"
            raise InputError(mismatch(f"graph {model.graph.name}", f"an input {name}, split for {len(members)} slots", "none", hint))
        parts[name] = {str(part.name): slot.scale_name for slot, part in zip(members, readers[0].outputs, strict=True)}
        for slot, part in zip(members, readers[0].outputs, strict=True):
            value = ir.val(slot.scale_name, ir.DataType.FLOAT, (slot.rank,))
            part.replace_all_uses_with(value)
            model.graph.inputs.append(value)
        sizes = readers[0].inputs[1:]
        model.graph.remove(readers[0], safe=True)
        model.graph.inputs.remove(inputs[name])
        for size in sizes:
            if size is not None and size.is_initializer() and not size.uses():
                del model.graph.initializers[str(size.name)]
    return parts


def _for_each_slot(encodings: dict[str, Any], parts: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Either format with the encoding of an input of scales for each slot's own constant, in place of those of its parts."""
    gone = {part for of in parts.values() for part in of}

    def expanded(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        result = []
        for entry in entries:
            if entry["name"] in parts:
                result += [{**entry, "name": name} for name in parts[entry["name"]].values()]
            elif entry["name"] not in gone:
                result.append(entry)
        return sorted(result, key=lambda entry: str(entry["name"]))

    return {key: expanded(value) if key.endswith("encodings") else value for key, value in encodings.items()}


def _as_parameters(encodings: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Format 1.0.0 with the slots among the parameters; the other has one list for all."""
    if encodings["version"] != VERSION_1:
        return encodings
    activations = encodings["activation_encodings"]
    moved = [entry for entry in activations if entry["name"] in names]
    left = [entry for entry in activations if entry["name"] not in names]
    parameters = sorted([*encodings["param_encodings"], *moved], key=lambda entry: str(entry["name"]))
    return {**encodings, "activation_encodings": left, "param_encodings": parameters}


def _use_cases(component: str, adapters: Iterable[str], encodings: str) -> str:
    """YAML of plain strings; names of adapters have no quotes in them."""
    lines = ["use_case:"]
    for adapter in adapters:
        lines += [
            f'  - name: "{adapter}"',
            f'    model_name: "{component}.onnx"',
            f'    lora_weights: "{adapter}.{component}.safetensors"',
            f'    quant_overrides: "{encodings}"',
            '    output_path: "output"',
        ]
    return "\n".join(lines) + "\n"
