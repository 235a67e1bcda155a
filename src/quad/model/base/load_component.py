"""One component of a diffusers directory as a float32 module, its weights read tensor by tensor.

The libraries' own loading holds the file and its float32 form at once, half as much again for a half-precision file; here never more than
one tensor is held twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import torch
import transformers
from torch import Tensor, nn

from quad.core.errors import InputError, UnsupportedError, mismatch
from quad.core.storage.header import Header
from quad.core.storage.stable_file import StableFile
from quad.model.base.weight_files import find_weights, open_header, read_config

DIFFUSION_STEM, TRANSFORMERS_STEM = "diffusion_pytorch_model", "model"
# safetensors' names of types.
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "C64": torch.complex64, "BOOL": torch.bool,
}  # fmt: skip
# What no model of the families that open here has nearly reached.
LARGEST_NUMBER, MOST_LAYERS, MOST_BLOCKS = 2**20, 128, 16
_AGAIN = "fetch or save the model again"
# Stored by old text encoders, and a constant.
_CONSTANTS = ("position_ids",)
# The attention of autoencoders, as named before diffusers 0.13.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_component(folder: Path, classes: Mapping[str, Any], stem: str) -> tuple[nn.Module, list[StableFile]]:
    """One component in float32, eval, without gradients, and its weight files.

    Args:
        classes: class name of `config.json` -> diffusers' or transformers' class.
        stem: name of the weight file, see `find_weights`.

    Raises:
        InputError: weights missing, pickled, truncated, not finite, or not those of the config.
        UnsupportedError: a class quad does not know, or weights that are no floats.
    """
    config = read_config(folder / "config.json")
    kind = config.get("_class_name") or config.get("architectures") or "no class at all"
    kind = kind[0] if isinstance(kind, list) else kind
    if not isinstance(kind, str) or kind not in classes:
        raise UnsupportedError(mismatch(f"{folder}", " or ".join(classes), kind, "choose a Stable-Diffusion-like model"))
    _require_plausible(folder / "config.json", config)
    files = find_weights(folder, stem)
    with _quiet():
        module = _empty(folder, classes[kind], config)
    _fill(folder, module, files)
    return module.eval().requires_grad_(False), files


def _require_plausible(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse numbers that no model has, before a module of them is made: it would take all time and memory that there is.

    Raises:
        InputError: with the first such field.
    """
    for field, value in config.items():
        values = value if isinstance(value, list) else [value]
        most = MOST_LAYERS if "layers" in field or (field.startswith("num_") and field.endswith("blocks")) else LARGEST_NUMBER
        if len(values) > MOST_BLOCKS and field.endswith(("block_types", "block_out_channels", "layers_per_block")):
            raise InputError(mismatch(f"{path}", f"at most {MOST_BLOCKS} blocks", f"{len(values)} as {field}", _AGAIN))
        for number in (value for value in values if isinstance(value, int | float) and not -most <= value <= most):
            raise InputError(mismatch(f"{path}", f"{field} up to {most}", f"{number!r}"[:40], _AGAIN))


@contextmanager
def _quiet() -> Iterator[None]:
    """Reports of the two libraries stay off; quad says itself what is wrong."""
    loggers = (diffusers.utils.logging, transformers.utils.logging)
    levels = [logger.get_verbosity() for logger in loggers]
    for logger in loggers:
        logger.set_verbosity_error()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.set_verbosity(level)


def _empty(folder: Path, kind: Any, config: dict[str, Any]) -> nn.Module:
    """The module of a config: its buffers are there, its parameters take no memory yet."""
    try:
        with accelerate.init_empty_weights(include_buffers=False):
            module: nn.Module = kind(kind.config_class.from_dict(config)) if hasattr(kind, "config_class") else kind.from_config(config)
    except Exception as error:  # a config may be wrong in any way, and the libraries raise what they run into
        cause = f"{error}".strip().splitlines()[0][:200] if f"{error}".strip() else type(error).__name__
        raise InputError(mismatch(f"{folder / 'config.json'}", "the config of a model", cause, "fetch or save the model again")) from error
    return module


def _fill(folder: Path, module: nn.Module, files: Iterable[StableFile]) -> None:
    """Every parameter and stored buffer of the module from the files, none left over on either side."""
    owners = dict(module.state_dict(keep_vars=True))
    missing, path = set(owners), folder
    for file in files:
        header, path = open_header(file), file.path
        names = {key: _name(key, owners) for key in header.entries}
        _refuse(path, "also", [key for key, name in names.items() if name is None and not key.endswith(_CONSTANTS)])
        for key, name in ((key, name) for key, name in names.items() if name is not None):
            value = _read(file, header, key, owners[name].shape)
            for twin in [other for other, tensor in owners.items() if tensor is owners[name]]:  # a tied tensor is stored once
                _assign(module, twin, value)
                missing.discard(twin)
    _refuse(path, "no", missing)


def _refuse(file: Path, word: str, keys: Iterable[str]) -> None:
    if names := ", ".join(sorted(keys)[:4]):
        raise InputError(mismatch(f"{file}", "exactly the weights of config.json", f"{word} {names}", "fetch or save the model again"))


def _name(key: str, owners: Mapping[str, Tensor]) -> str | None:
    """The module's own name of a stored tensor; None where it has none."""
    path, _, leaf = key.rpartition(".")
    parent, _, last = path.rpartition(".")
    old = f"{parent}.{_OLD_ATTENTION.get(last, last)}.{leaf}"
    return next((name for name in (key, key.removeprefix("text_model."), f"text_model.{key}", old) if name in owners), None)


def _read(file: StableFile, header: Header, key: str, shape: torch.Size) -> Tensor:
    """One tensor as float32."""
    entry = header.entries[key]
    dtype = _TYPES.get(entry.dtype)
    if dtype is None or not dtype.is_floating_point or dtype.itemsize == 1:
        expected, stored_type = "weights of 16 or 32 bit floats", f"{key} of {dtype or entry.dtype}"
        raise UnsupportedError(mismatch(f"{file.path}", expected, stored_type, "choose a model that is not quantized"))
    if entry.shape != tuple(shape):
        shapes = f"{key} of shape {entry.shape}, not {tuple(shape)}"
        raise InputError(mismatch(f"{file.path.parent}", "weights that fit config.json", shapes, "fetch or save the model again"))
    begin, end = entry.data_offsets
    stored = torch.from_numpy(file.read(header.start + begin, end - begin)).view(dtype).reshape(shape)
    value = stored.to(torch.float32)
    # Of the extremes alone: over the tensor, `isfinite` would make others of its size.
    if value.numel() and not bool(torch.stack(value.aminmax()).isfinite().all()):
        raise InputError(mismatch(f"{file.path}", "finite weights", f"NaN or infinity in {key}", "fetch or save the model again"))
    return value


def _assign(module: nn.Module, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(value, requires_grad=False)
    else:
        owner._buffers[leaf] = value
