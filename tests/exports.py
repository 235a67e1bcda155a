"""One trace for networks of one structure: torch takes seconds for each, and the suite builds the same small models again and again.

A structure is known by everything its trace can depend on: classes and their code, shapes of parameters, buffers, attributes, example
inputs, and quad's own code of the trace, so that a test that patches any of it gets a trace of its own. A trace does not read parameters:
each network's own values take their places in the graph.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import importlib
import json
import os
import pkgutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import BuiltinFunctionType, CodeType, EllipsisType, FunctionType, MethodType
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn

from quad.compile import export
from quad.compile.export import GraphSpec
from quad.compile.lazy_weights import lazy_weight
from quad.core.tensor_names import weight_name
from quad.model.slots.held_weight import HeldWeight
from quad.model.slots.layers import layers_of

Trace = Callable[[nn.Module, GraphSpec], ir.Model]
_PLAIN = (type(None), EllipsisType, msgspec.UnsetType, bool, int, float, str, bytes, torch.dtype, torch.device, enum.Enum)
_PLACES = "parameters"
_OURS = ("quad.model", "quad.compile.export", "quad.compile.lazy_weights", "quad.compile.one_trace")


class _Unknown(Exception):
    """A value of which nothing is known that would tell it from another."""


class NetworkDigest:
    """SHA-256 over the values that a trace depends on; a value seen before counts by its place alone."""

    def __init__(self) -> None:
        self._sum, self._seen = hashlib.sha256(), dict[int, int]()
        self._alive = list[object]()  # an id means nothing once its object is gone

    def hexdigest(self) -> str:
        return self._sum.hexdigest()

    def add(self, value: Any) -> None:
        """Take a value in.

        Raises:
            _Unknown: of a kind that nothing here describes.
        """
        if isinstance(value, _PLAIN):
            return self._write(repr(value))
        if id(value) in self._seen:
            return self._write(f"seen {self._seen[id(value)]}")
        self._seen[id(value)] = len(self._seen)
        self._alive.append(value)
        self._write(f"{type(value).__module__}.{type(value).__qualname__}")
        return self._add_object(value)

    def _write(self, text: str) -> None:
        self._sum.update(text.encode() + b"\0")

    def _add_object(self, value: Any) -> None:
        if isinstance(value, nn.Parameter):
            self._write(f"{tuple(value.shape)} {value.dtype} {value.requires_grad}")
        elif isinstance(value, torch.Tensor):
            self._write(f"{tuple(value.shape)} {value.dtype} {value.requires_grad}")
            self._sum.update(value.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes() if value.dim() else repr(value).encode())
        elif isinstance(value, np.ndarray):
            self._write(f"{value.shape} {value.dtype}")
            self._sum.update(value.tobytes())
        elif isinstance(value, type | FunctionType | BuiltinFunctionType | MethodType | functools.partial | CodeType):
            self._add_code(value)
        elif isinstance(value, set | frozenset):
            self.add(sorted(map(repr, value)))
        elif isinstance(value, Mapping):
            for key, held in value.items():
                self.add(key)
                self.add(held)
        elif isinstance(value, list | tuple):
            for held in value:
                self.add(held)
        elif isinstance(value, msgspec.Struct):
            self.add(msgspec.structs.asdict(value))
        elif hasattr(value, "__dict__"):
            self.add(type(value))
            self.add(dict(vars(value)))
        else:
            raise _Unknown(type(value))

    def _add_code(self, value: Any) -> None:
        if isinstance(value, CodeType):
            self._sum.update(value.co_code)
            self.add([constant for constant in value.co_consts if not isinstance(constant, frozenset)])
            self.add(list(value.co_names))
        elif isinstance(value, functools.partial):
            self.add([value.func, value.args, value.keywords])
        elif isinstance(value, type):
            self.add([value.__module__, value.__qualname__, getattr(value.__dict__.get("forward"), "__code__", None)])
        elif isinstance(value, MethodType):
            self.add([value.__func__, value.__self__])
        else:
            self.add([value.__module__, value.__qualname__, getattr(value, "__code__", None)])
            self.add([cell.cell_contents for cell in getattr(value, "__closure__", None) or ()])


@functools.cache
def _modules_of_traces() -> tuple[str, ...]:
    """quad's own modules that a trace may call, all imported: another process may have come by fewer of them."""
    rooms = [importlib.import_module(name) for name in _OURS]
    found = [part.name for room in rooms for part in pkgutil.walk_packages(getattr(room, "__path__", ()), f"{room.__name__}.")]
    for name in found:
        importlib.import_module(name)
    return tuple(sorted([*_OURS, *found]))


def _code_of_traces() -> list[CodeType]:
    """The code of quad's own functions and methods that a trace may call, as they are now."""
    codes = []
    for name in _modules_of_traces():
        for holder in (sys.modules[name], *(held for held in vars(sys.modules[name]).values() if isinstance(held, type))):
            if isinstance(holder, type) and not holder.__module__.startswith(_OURS):
                continue
            codes += [held.__code__ for held in vars(holder).values() if isinstance(held, FunctionType)]
    return codes


def _forms(examples: Mapping[str, torch.Tensor]) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    """Names, shapes and types: a trace is made with tensors that hold no numbers."""
    return [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in examples.items()]


def export_key(module: nn.Module, spec: GraphSpec) -> str | None:
    """What an export is kept under; None where the network holds something that cannot be told from another."""
    digest = NetworkDigest()
    try:
        digest.add([_code_of_traces(), spec.component, spec.output, _forms(spec.inputs), _forms(spec.slots), module])
    except _Unknown:
        return None
    return digest.hexdigest()


def _places(module: nn.Module, model: ir.Model) -> dict[str, str]:
    """Initializer -> the parameter whose values it has; of a layer's weight, which is made when it is read, the one of its own name."""
    by_place = {(tensor.data_ptr(), tuple(tensor.shape)): name for name, tensor in module.named_parameters()}
    places = {}
    for name, value in model.graph.initializers.items():
        if isinstance(value.const_value, ir.LazyTensor):
            places[name] = name
            continue
        raw = getattr(value.const_value, "raw", None)
        if isinstance(raw, torch.Tensor) and (key := (raw.data_ptr(), tuple(raw.shape))) in by_place:
            places[name] = by_place[key]
    return places


def _filled(model: ir.Model, places: dict[str, str], module: nn.Module) -> ir.Model:
    """The graph of another network of the structure, with this one's parameters."""
    parameters = dict(module.named_parameters())
    weights = {weight_name(path): HeldWeight.of(layer) for path, layer in layers_of(module).items()}
    for name, parameter in places.items():
        model.graph.initializers[name].const_value = (
            lazy_weight(weights[name], name) if name in weights else ir.tensor(parameters[parameter].detach().numpy(), name=name)
        )
    return model


def _written(model: ir.Model, places: dict[str, str]) -> bytes:
    proto = ir.to_proto(model)
    proto.metadata_props.extend([onnx.StringStringEntryProto(key=_PLACES, value=json.dumps(places))])
    return bytes(proto.SerializeToString())


def _read(content: bytes) -> tuple[ir.Model, dict[str, str]]:
    proto = onnx.load_model_from_string(content)
    (entry,) = (entry for entry in proto.metadata_props if entry.key == _PLACES)
    places: dict[str, str] = json.loads(entry.value)
    proto.metadata_props.remove(entry)
    return ir.from_proto(proto), places


def sharing(folder: Path, trace: Trace = export.traced) -> Trace:
    """`traced` that asks `folder` first, which several processes may share."""
    folder.mkdir(parents=True, exist_ok=True)

    def traced(module: nn.Module, spec: GraphSpec) -> ir.Model:
        key = export_key(module, spec)
        if key is None:
            return trace(module, spec)
        path = folder / f"{key}.onnx"
        if path.is_file():
            return _filled(*_read(path.read_bytes()), module)
        model = trace(module, spec)
        part, content = path.with_suffix(f".{os.getpid()}"), _written(model, _places(module, model))
        part.write_bytes(content)
        part.replace(path)
        return _filled(*_read(content), module)  # as all others get it: a fresh graph counts on where it gives names to new nodes

    return traced
