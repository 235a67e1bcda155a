"""Model directories whose weights, tokenizers and schedulers are broken, or lie elsewhere."""

from __future__ import annotations

import json
import pickle  # noqa: TID251 - what is written here must never be opened
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quad.core.errors import InputError, QuadError, UnsupportedError
from tests.hostile.model_configs import SCHEDULER, TOKENIZER, edit, linked, pipe
from tests.hostile.raw import Written, changed, headed, put
from tests.hostile.refusal import Case
from tests.model.clip_vocabulary import write_clip_files

UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
_BIAS, _FRESH = "conv_in.bias", "fetch or save the model again"


def _cut(name: str, share: float) -> Written:
    return changed(lambda root: (root / name).write_bytes((root / name).read_bytes()[: int(share * (root / name).stat().st_size)]))


def _tensors(name: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Written:
    return changed(lambda root: save_file(change(load_file(root / name)), root / name))


def _pickled(root: Path) -> None:
    (root / UNET).unlink()
    (root / "unet/diffusion_pytorch_model.bin").write_bytes(pickle.dumps({}))


def _shards(weight_map: Any) -> Written:
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    return put(index, json.dumps({"weight_map": weight_map}).encode())


def _channels(**counts: int) -> Written:
    """A U-Net that really has so many channels, in its config and in its weights."""

    def change(root: Path) -> None:
        edit("unet/config.json", **counts)(root)
        all_ = load_file(root / UNET)
        entrance, exit_ = all_["conv_in.weight"], all_["conv_out.weight"]
        all_["conv_in.weight"] = entrance[:, :1].repeat(1, counts.get("in_channels", 9), 1, 1)
        all_["conv_out.weight"] = exit_[:1].repeat(counts.get("out_channels", 4), 1, 1, 1)
        all_["conv_out.bias"] = all_["conv_out.bias"][:1].repeat(counts.get("out_channels", 4))
        save_file(all_, root / UNET)

    return changed(change)


CHANNELS = [
    *(Case(f"{n} input channels", _channels(in_channels=n), UnsupportedError, f"in_channels={n}") for n in (1, 3, 5, 12, 16)),
    Case("3 output channels", _channels(out_channels=3), UnsupportedError, "expected 4 output channels, found 3"),
]
WEIGHTS = [
    *(
        Case(f"{name} cut to {share:g}", _cut(name, share), InputError, "a whole safetensors file")
        for name in (UNET, TEXT)
        for share in (0, 0.001, 0.5, 0.999)
    ),
    Case("weights that are pickled alone", changed(_pickled), InputError, "a pickled file, which can run code"),
    Case("a pickle under the right name", put(UNET, pickle.dumps({"a": 1})), InputError, "a whole safetensors file"),
    Case("a header of 2^63 bytes", put(UNET, headed({}, length=2**63)), InputError, "a whole safetensors file"),
    Case("weights of a folder", changed(lambda root: ((root / UNET).unlink(), (root / UNET).mkdir())), InputError, "no weights"),
    Case("weights of a pipe", pipe(UNET), InputError, "expected"),
    Case(
        "one tensor less", _tensors(UNET, lambda all_: {k: v for k, v in all_.items() if k != _BIAS}), InputError, "found no conv_in.bias"
    ),
    Case("one tensor more", _tensors(UNET, lambda all_: {**all_, "more\n.weight": torch.ones(2)}), InputError, "found also more"),
    Case("no tensor", _tensors(UNET, lambda _: {}), InputError, "exactly the weights of config.json"),
    Case(
        "10,000 tensors more",
        _tensors(UNET, lambda all_: {**all_, **{f"x{i}": torch.ones(1) for i in range(10_000)}}),
        InputError,
        "found also x0",
    ),
    Case(
        "a tensor of another shape", _tensors(UNET, lambda all_: {**all_, _BIAS: torch.ones(17)}), InputError, "conv_in.bias of shape (17,)"
    ),
    Case("a tensor of no axes", _tensors(UNET, lambda all_: {**all_, _BIAS: torch.tensor(1.0)}), InputError, "conv_in.bias of shape ()"),
    Case(
        "NaN in the U-Net",
        _tensors(UNET, lambda all_: {**all_, _BIAS: all_[_BIAS] * torch.nan}),
        InputError,
        "NaN or infinity in conv_in.bias",
    ),
    Case(
        "infinity in the text encoder",
        _tensors(TEXT, lambda all_: {k: v / 0 if v.ndim == 1 else v for k, v in all_.items()}),
        InputError,
        "NaN or infinity",
    ),
    Case(
        "infinity past float32", _tensors(UNET, lambda all_: {**all_, _BIAS: all_[_BIAS].double() + 1e300}), InputError, "NaN or infinity"
    ),
    Case(
        "whole numbers for weights",
        _tensors(UNET, lambda all_: {**all_, _BIAS: torch.ones(16, dtype=torch.int8)}),
        UnsupportedError,
        "torch.int8",
    ),
    Case(
        "8-bit floats and their scales",
        _tensors(UNET, lambda all_: {**all_, _BIAS: torch.ones(16).to(torch.float8_e5m2), "conv_in.scale_weight": torch.tensor(0.5)}),
        UnsupportedError,
        "scales of their own: conv_in.scale_weight",
    ),
    Case(
        "NaN of 8 bits",
        _tensors(UNET, lambda all_: {**all_, _BIAS: (torch.ones(16) * torch.nan).to(torch.float8_e4m3fn)}),
        InputError,
        "NaN or infinity",
    ),
    Case("complex numbers for weights", _tensors(UNET, lambda all_: {**all_, _BIAS: torch.ones(16) * 1j}), UnsupportedError, "complex"),
    Case("shards in a parent", _shards({_BIAS: "../outside.safetensors"}), InputError, "names of files beside it"),
    Case("shards of the system", _shards({_BIAS: "/etc/passwd"}), InputError, "names of files beside it"),
    Case("shards that are not there", _shards({_BIAS: "gone-00001-of-00002.safetensors"}), InputError, "expected"),
    Case("shards of numbers", _shards({_BIAS: 7}), InputError, "expected"),
    Case("shards of a list", _shards([_BIAS]), InputError, "a weight_map of files"),
    Case("a shard of the directory itself", _shards({_BIAS: ".."}), InputError, "expected"),
    Case("a shard twice over", _shards({_BIAS: Path(UNET).name + "\0"}), InputError, "expected"),
]


def _outside(root: Path) -> Path:
    return root.parent / "outside"


LINKS = [
    *(
        Case(f"{name} linked out", linked(name, _outside), InputError, "a link out of it")
        for name in (UNET, "unet/config.json", TEXT, "vae", "tokenizer", SCHEDULER)
    ),
    Case("a tokenizer of the system", linked(TOKENIZER, lambda _: "/etc/passwd"), InputError, "a link out of it"),
    Case("weights that link to themselves", linked(UNET, lambda root: root / UNET), InputError, "expected"),
]

_SCHEDULERS: Mapping[str, dict[str, Any]] = {
    "a class that is none": {"_class_name": "Scheduler"},
    "a class of a list": {"_class_name": ["DDIMScheduler"]},
    "a scheduler of flows": {"_class_name": "FlowMatchEulerDiscreteScheduler"},
    "no timesteps": {"num_train_timesteps": 0},
    "timesteps below zero": {"num_train_timesteps": -1000},
    "a trillion timesteps": {"num_train_timesteps": 10**12},
    "timesteps of a string": {"num_train_timesteps": "1000"},
    "betas of NaN": {"beta_start": float("nan")},
    "betas of infinity": {"beta_end": float("inf")},
    "betas past 1": {"beta_schedule": "linear", "beta_end": 2.0},
    "betas below 0": {"beta_schedule": "linear", "beta_start": -0.1},
    "betas of a string": {"beta_start": "0.1"},
    "betas that were trained, too few": {"trained_betas": [0.1, 0.2]},
    "betas that were trained, of strings": {"trained_betas": ["a"] * 1000},
    "a prediction that is none": {"prediction_type": "flow"},
    "a schedule of a number": {"beta_schedule": 7},
    "an unknown field": {"hidden_trick": 3},
    "thresholding": {"thresholding": True},
    "spacing that is none": {"timestep_spacing": "sideways"},
}
SCHEDULERS = [Case(name, edit(SCHEDULER, **fields), QuadError, "expected") for name, fields in _SCHEDULERS.items()]


def _clip(name: str, content: bytes) -> Written:
    """CLIP's own files in place of `tokenizer.json`, one of them broken."""

    def change(root: Path) -> None:
        shutil.rmtree(root / "tokenizer")
        write_clip_files(root / "tokenizer")
        (root / "tokenizer" / name).write_bytes(content)

    return changed(change)


_TOKENIZERS: Mapping[str, Written] = {
    "no JSON": put(TOKENIZER, b"tokens"),
    "nothing": put(TOKENIZER, b""),
    "another object": put(TOKENIZER, b'{"version": "1.0"}'),
    "deep lists": put(TOKENIZER, b"[" * 100_000),
    "no UTF-8": put(TOKENIZER, b'{"\xff": 1}'),
    "a model that is none": put(TOKENIZER, b'{"version":"1.0","model":{"type":"Magic"}}'),
    "a regular expression that is none": edit(
        TOKENIZER, pre_tokenizer={"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Removed", "invert": False}
    ),
    "more tokens than the text encoder": edit(
        TOKENIZER, model={"type": "WordLevel", "vocab": {f"w{i}": i for i in range(99)}, "unk_token": "w0"}
    ),
    "a token's number past 64 bits": edit(TOKENIZER, model={"type": "WordLevel", "vocab": {"a": 2**70}, "unk_token": "a"}),
    "a token's number past the text encoder": edit(
        TOKENIZER, model={"type": "WordLevel", "vocab": {"<pad>": 0, "a": 2**31}, "unk_token": "a"}
    ),
    "a token's number below zero": edit(TOKENIZER, model={"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "a"}),
    "vocab.json of a list": _clip("vocab.json", b"[]"),
    "vocab.json of no JSON": _clip("vocab.json", b"{'a': 1}"),
    "vocab.json of strings": _clip("vocab.json", b'{"a": "b"}'),
    "vocab.json of one number": _clip("vocab.json", b'{"a</w>": 1, "b": 1}'),
    "vocab.json of huge numbers": _clip("vocab.json", b'{"a</w>": 99999999999999999999}'),
    "vocab.json without special tokens": _clip("vocab.json", b'{"a</w>": 1}'),
    "vocab.json of deep objects": _clip("vocab.json", b'{"a":' * 60_000 + b"1" + b"}" * 60_000),
    "merges.txt of nothing known": _clip("merges.txt", b"xyz zyx\n"),
    "merges.txt of bytes": _clip("merges.txt", b"\xff\xfe\xff"),
    "merges.txt of three": _clip("merges.txt", b"a b c\n"),
    "tokenizer_config.json of a list": _clip("tokenizer_config.json", b"[]"),
    "special tokens of numbers": _clip("tokenizer_config.json", b'{"bos_token": {"content": 7}}'),
}
TOKENIZERS = [Case(name, write, QuadError, "expected") for name, write in _TOKENIZERS.items()]
