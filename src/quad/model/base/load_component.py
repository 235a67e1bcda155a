"""One component of a model as a float32 module: looked at whole, then its weights read tensor by tensor.

The libraries' own loading holds the file and its float32 form at once, half as much again for a half-precision file; here never more than
one tensor is held twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import transformers
from torch import Tensor, nn

from quad.core.errors import InputError, UnsupportedError, mismatch
from quad.core.slots import TEXT_ENCODER
from quad.core.storage.stable_file import StableFile
from quad.lora.quote import listed
from quad.model.base.stored_weights import EIGHT_BITS, StoredWeight, stored_weights
from quad.model.base.weight_files import find_weights, read_config, read_index

DIFFUSION_STEM, TRANSFORMERS_STEM = "diffusion_pytorch_model", "model"
# What no model of the families that open here has nearly reached.
LARGEST_NUMBER, MOST_LAYERS, MOST_BLOCKS = 2**20, 128, 16
_AGAIN = "fetch or save the model again"
# Networks whose layers may be held in less than float32.
WIDENED = (diffusers.UNet2DConditionModel, transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection)
# Stored by old text encoders, and a constant.
_CONSTANTS = ("position_ids",)
# What a running average of weights, or a trainer, counts beside them.
_COUNTERS = re.compile(r"(^|\.)(num_updates|decay|(global_|optimization_)?steps?|epoch)$")
# The attention of autoencoders, as named before diffusers 0.13.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True, kw_only=True)
class StoredComponent:
    """One component whose weights are not read yet: its config makes a network, and the names and shapes in its files fit it.

    Args:
        module: the network; its parameters take no memory yet.
        weights: the network's own name of a tensor -> where it is stored.
        files: all that the weights are stored in.
        notes: what is stored and passed over, a line each.
    """

    module: nn.Module
    weights: Mapping[str, StoredWeight]
    files: Sequence[StableFile]
    notes: tuple[str, ...] = ()

    @property
    def config(self) -> Any:
        """The network's."""
        return self.module.config

    def load(self, least: int | None = None) -> nn.Module:
        """The network in float32, eval, without gradients.

        Args:
            least: from so many numbers on, weights of its layers are in the precision of their file: for who gives the layers Sites, which
                widen them at every call. None for float32 however many there are.

        Raises:
            InputError: a file was changed since it was looked at, or weights are not finite.
        """
        owners = dict(self.module.state_dict(keep_vars=True))
        compact = self._layer_weights() if least is not None and sum(map(Tensor.numel, owners.values())) >= least else ()
        for name, weight in self.weights.items():
            value = weight.read_as_stored() if name in compact else weight.read()
            for twin in _twins(owners, name):
                _assign(self.module, twin, value)
        return self.module.eval().requires_grad_(False)

    def _layer_weights(self) -> frozenset[str]:
        """Names of the weights of Linears and convolutions, none where the network's own code asks for their type."""
        if not isinstance(self.module, WIDENED):
            return frozenset()
        layers = [path for path, module in self.module.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        return frozenset(f"{path}.weight" for path in layers)


def find_component(folder: Path, classes: Mapping[str, Any], stem: str) -> StoredComponent:
    """One component of a directory, before any of its weights is read.

    Args:
        classes: class name of `config.json` -> diffusers' or transformers' class.
        stem: name of the weight file, see `find_weights`.

    Raises:
        InputError: weights missing, pickled, truncated, or not those of the config.
        UnsupportedError: a class quad does not know, or weights that are no floats.
    """
    config = read_config(folder / "config.json")
    kind = _class_name(folder, config)
    if not isinstance(kind, str) or kind not in classes:
        raise UnsupportedError(mismatch(f"{folder}", " or ".join(classes), kind, "choose a Stable-Diffusion-like model"))
    _require_plausible(folder / "config.json", config)
    files = find_weights(folder, stem)
    module = empty_module(folder / "config.json", classes[kind], config)
    stored = {name: weight for file in files for name, weight in stored_weights(file).items()}
    return fitted(module, stored, files, folder.name)


def _class_name(folder: Path, config: Mapping[str, Any]) -> Any:
    """The class that a config states; where it states none, the one in the pipeline's `model_index.json`, which diffusers goes by."""
    kind = config.get("_class_name") or config.get("architectures")
    if not kind:
        stated = read_index(folder.parent).get(folder.name)
        kind = stated[-1:] if isinstance(stated, list) else None
    return (kind[0] if isinstance(kind, list) and kind else kind) or "no class at all"


def fitted(module: nn.Module, stored: Mapping[str, StoredWeight], files: Sequence[StableFile], part: str) -> StoredComponent:
    """A network and the stored tensors that are its own.

    Of a text encoder all others are passed over, as transformers does: a config may leave its last layers out, and CLIP's other half may
    lie beside it. Of other networks only counters are.

    Args:
        part: the component's name.

    Raises:
        InputError: tensors missing, too many, or of other shapes than the network's. UnsupportedError: some are no floats.
    """
    owners = dict(module.state_dict(keep_vars=True))
    names = {key: _name(key, owners) for key in stored}
    weights = {name: stored[key] for key, name in names.items() if name is not None}
    filled = {twin for name in weights for twin in _twins(owners, name)}
    surplus = sorted(key for key, name in names.items() if name is None and not key.endswith(_CONSTANTS))
    _refuse(files, "also", [key for key in surplus if part != TEXT_ENCODER and not _COUNTERS.search(key)])
    _refuse(files, "no", sorted(owners.keys() - filled))
    for name, weight in weights.items():
        weight.require(owners[name].shape)
    notes = []
    if surplus:
        notes.append(f"{part}: its config has no place for {len(surplus)} stored tensors, passed over: {listed(surplus)}")
    if rounded := sum(weight.dtype in EIGHT_BITS for weight in weights.values()):
        notes.append(
            f"{part}: {rounded} of {len(weights)} tensors are stored as 8-bit floats; the bundle is compared with these, "
            "not with the model that they were rounded from"
        )
    return StoredComponent(module=module, weights=weights, files=files, notes=tuple(notes))


def _refuse(files: Sequence[StableFile], word: str, keys: Sequence[str]) -> None:
    if names := ", ".join(keys[:4]):
        expected = "exactly the weights of config.json"
        raise InputError(mismatch(f"{files[-1].path}", expected, f"{word} {names}", "fetch or save the model again"))


def _twins(owners: Mapping[str, Tensor], name: str) -> list[str]:
    """All names of one tensor: a tied one is stored once."""
    return [other for other, tensor in owners.items() if tensor is owners[name]]


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
def quiet() -> Iterator[None]:
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


def empty_module(place: Path, kind: Any, config: dict[str, Any]) -> nn.Module:
    """The module of a config: its buffers are there, its parameters take no memory yet.

    Args:
        place: where the config is from, for a message.

    Raises:
        InputError: no module can be made of it.
    """
    try:
        with quiet(), accelerate.init_empty_weights(include_buffers=False):
            module: nn.Module = kind(kind.config_class.from_dict(config)) if hasattr(kind, "config_class") else kind.from_config(config)
    except Exception as error:  # a config may be wrong in any way, and the libraries raise what they run into
        cause = f"{error}".strip().splitlines()[0][:200] if f"{error}".strip() else type(error).__name__
        raise InputError(mismatch(f"{place}", "the config of a model", cause, "fetch or save the model again")) from error
    return module


def _name(key: str, owners: Mapping[str, Tensor]) -> str | None:
    """The module's own name of a stored tensor; None where it has none."""
    path, _, leaf = key.rpartition(".")
    parent, _, last = path.rpartition(".")
    old = f"{parent}.{_OLD_ATTENTION.get(last, last)}.{leaf}"
    return next((name for name in (key, key.removeprefix("text_model."), f"text_model.{key}", old) if name in owners), None)


def _assign(module: nn.Module, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(value, requires_grad=False)
    else:
        owner._buffers[leaf] = value
