"""LoRA directories and configs that mislead: links out, loops, pipes, devices, and configs that cannot be."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quad.core.errors import InputError, QuadError, UnsupportedError
from tests.hostile.lora_bytes import PAIR, WHOLE, Q
from tests.hostile.raw import NAME, Written, of_bytes, of_json, of_parts, of_tensors, ones
from tests.hostile.refusal import Case

DIFFUSERS, PEFT, CONFIG = "pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json"
PEFT_PAIR = {"base_model.model." + key.removeprefix("unet."): value for key, value in PAIR.items()}


def _linked(name: str, target: str, named: str = "") -> Written:
    """A directory `lora` with a link in it, to what lies outside."""

    def write(folder: Path) -> Path:
        (folder / "lora").mkdir()
        (folder / "outside.safetensors").write_bytes(WHOLE)
        (folder / "outside.json").write_text(json.dumps({"r": 4, "lora_alpha": 4}))
        of_tensors(PEFT_PAIR, name="peft.safetensors")(folder)
        if name == CONFIG:
            (folder / "peft.safetensors").rename(folder / "lora" / PEFT)
        (folder / "lora" / name).symlink_to(target)
        return folder / "lora" / named if named else folder / "lora"

    return write


def _linked_part(folder: Path) -> Path:
    of_bytes(WHOLE, DIFFUSERS)(folder)
    (folder / "lora").mkdir()
    (folder / "lora" / "unet").symlink_to(folder)
    return folder / "lora"


def _loop(folder: Path) -> Path:
    (folder / "lora").mkdir()
    (folder / "lora" / "unet").symlink_to(folder / "lora")
    (folder / "lora" / "text_encoder").symlink_to("..")
    return folder / "lora"


def _circle(folder: Path) -> Path:
    (folder / NAME).symlink_to(folder / "other.safetensors")
    (folder / "other.safetensors").symlink_to(folder / NAME)
    return folder / NAME


def _pipe(name: str = NAME, named: str = NAME) -> Written:
    def write(folder: Path) -> Path:
        os.mkfifo(folder / name)
        return folder / named

    return write


def _device(folder: Path) -> Path:
    (folder / NAME).symlink_to("/dev/zero")
    return folder / NAME


def _socket(folder: Path) -> Path:
    # Bound by a short name: a socket's own name may be no longer than a hundred letters.
    there, before = socket.socket(socket.AF_UNIX), Path.cwd()
    os.chdir(folder)
    there.bind(NAME)
    os.chdir(before)
    there.close()
    return folder / NAME


def _nothing(folder: Path) -> Path:
    return folder / NAME


def _below_a_file(folder: Path) -> Path:
    return of_bytes(WHOLE)(folder) / DIFFUSERS


def _folder(folder: Path) -> Path:
    (folder / NAME).mkdir()
    return folder / NAME


_OUT = "a link out of it"
# Both `read_lora` and `quad inspect` refuse these.
PLACES = [
    Case("weights linked to a parent", _linked(DIFFUSERS, "../outside.safetensors"), InputError, _OUT),
    Case("weights linked to the system", _linked(DIFFUSERS, "/etc/passwd"), InputError, _OUT),
    Case("PEFT weights linked to a parent", _linked(PEFT, "../peft.safetensors"), InputError, _OUT),
    Case("a part linked out", _linked_part, InputError, _OUT),
    Case("directories in a circle", _loop, InputError, "expected"),
    Case("links in a circle", _circle, InputError, "expected"),
    Case("a link to nothing", _linked(DIFFUSERS, "nowhere"), InputError, "expected"),
    Case("a pipe", _pipe(), InputError, "expected"),
    Case("a pipe in a directory", _pipe(DIFFUSERS, ""), InputError, "expected"),
    Case("a device without end", _device, InputError, "expected"),
    Case("a socket", _socket, InputError, "expected"),
    Case("nothing", _nothing, InputError, "expected"),
    Case("a file below a file", _below_a_file, InputError, "expected"),
    Case("an empty directory", _folder, InputError, "expected"),
    *(
        Case(f"a pickled {name}", of_bytes(b"\x80\x02}.", name), InputError, "a pickled file, which can run code")
        for name in ("ink.bin", "ink.pt", "ink.pth", "ink.ckpt", "INK.PKL")
    ),
    Case("a directory with a pickle alone", of_parts(of_bytes(b"\x80\x02}.", "adapter_model.bin")), InputError, "expected"),
]

_LONGER = "(a|aa)+$"
_CONFIGS: Mapping[str, tuple[Any, type[QuadError], str]] = {
    "a list": ([], InputError, "a JSON object as the adapter's config, found list"),
    "r of zero": ({"r": 0}, InputError, "r: expected a whole number from 1 on, found 0"),
    "r below zero": ({"r": -4}, InputError, "r: expected a whole number"),
    "r of a string": ({"r": "4"}, InputError, "r: expected a whole number"),
    "r of a half": ({"r": 4.5}, InputError, "r: expected a whole number"),
    "r of true": ({"r": True}, InputError, "r: expected a whole number"),
    "r past all": ({"r": 10**40}, InputError, "r: expected a whole number"),
    "r of another rank": ({"r": 8, "lora_alpha": 8}, InputError, "expected rank 8 (the adapter's config), found rank 4"),
    "alpha of a list": ({"r": 4, "lora_alpha": [4]}, InputError, "lora_alpha: expected a number"),
    "alpha of NaN": ({"r": 4, "lora_alpha": float("nan")}, InputError, "lora_alpha: expected a number, found nan"),
    "alpha of infinity": ({"r": 4, "lora_alpha": float("inf")}, InputError, "lora_alpha: expected a number, found inf"),
    "patterns of a list": ({"r": 4, "rank_pattern": ["to_q"]}, InputError, "rank_pattern: expected an object"),
    "a pattern that takes a life": ({"r": 4, "rank_pattern": {_LONGER: 4}}, InputError, "patterns that are a module's path"),
    "a pattern of nested groups": ({"r": 4, "alpha_pattern": {"((a*)*)*b": 4}}, InputError, "patterns that are a module's path"),
    "a pattern that is none": ({"r": 4, "rank_pattern": {"to_(q": 4}}, InputError, "patterns that are a module's path"),
    "a pattern of 10,000 letters": ({"r": 4, "rank_pattern": {"a" * 10_000: 4}}, InputError, "patterns that are a module's path"),
    "a pattern past counting": ({"r": 4, "rank_pattern": {"a{99999999999999}": 4}}, InputError, "rank_pattern: expected"),
    "1,000 expressions": ({"r": 4, "rank_pattern": {f"a{i}.*": 4 for i in range(1000)}}, InputError, "at most 32 expressions"),
    "a pattern's value of a string": ({"r": 4, "rank_pattern": {"to_q": "4"}}, InputError, "expected a whole number"),
    "rslora of a string": ({"r": 4, "use_rslora": "no"}, InputError, "use_rslora: expected true or false"),
    "dora without magnitudes": ({"r": 4, "use_dora": True}, InputError, "expected a magnitude (use_dora)"),
    "tensors of another kind": ({"r": 4, "peft_type": "LOHA"}, InputError, "expected tensors of LOHA (peft_type), found LoRA"),
    "another kind": ({"peft_type": "PROMPT_TUNING"}, UnsupportedError, "found 'PROMPT_TUNING' (peft_type)"),
    "a kind of a list": ({"r": 4, "peft_type": ["LORA"]}, UnsupportedError, "(peft_type)"),
    "a base that is changed": ({"r": 4, "init_lora_weights": "pissa_niter_4"}, UnsupportedError, "init_lora_weights="),
    "layers repeated": ({"r": 4, "layer_replication": [[0, 4]]}, UnsupportedError, "found layer_replication"),
}
_TEXTS: Mapping[str, bytes] = {
    "no JSON": b"r: 4",
    "half of JSON": b'{"r": 4, ',
    "nothing": b"",
    "bytes": b"\xff\xfe\x00\x01",
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"r":' * 50_000 + b"4" + b"}" * 50_000,
    "a number of 5,000 digits": b'{"r": 1' + b"0" * 5000 + b"}",
    "17 MB": b'{"r": 4}' + b" " * (17 * 2**20),
}


def _peft(config: Written) -> Written:
    return of_parts(of_tensors(PEFT_PAIR, name=PEFT), config)


# Of the file's header alone `quad inspect` may know nothing of these.
CONFIGS = [
    *(Case(f"a config with {name}", _peft(of_json(value, CONFIG)), error, says) for name, (value, error, says) in _CONFIGS.items()),
    *(Case(f"a config of {name}", _peft(of_bytes(text, CONFIG)), InputError, CONFIG) for name, text in _TEXTS.items()),
    Case("a config linked to a parent", _linked(CONFIG, "../outside.json"), InputError, _OUT),
    Case("PEFT keys without their config", of_parts(of_tensors(PEFT_PAIR, name=PEFT)), InputError, "alpha is unknown"),
]


def _packed(value: object) -> Written:
    return of_tensors(PAIR, {"lora_adapter_metadata": value if isinstance(value, str) else json.dumps(value)})


METADATA = [
    Case("metadata of no JSON", _packed("{'r': 4}"), InputError, "the adapter's config in JSON"),
    Case("metadata of a list", _packed([4]), InputError, "a JSON object as the adapter's config, found list"),
    Case("metadata of deep lists", _packed("[" * 100_000), InputError, "the adapter's config in JSON"),
    Case("metadata of another rank", _packed({"unet.r": 8, "unet.lora_alpha": 8}), InputError, "expected rank 8 (the adapter's config)"),
    Case("metadata with r of a string", _packed({"unet.r": "four"}), InputError, "r: expected a whole number"),
    Case("metadata with slow patterns", _packed({"unet.r": 4, "unet.rank_pattern": {_LONGER: 4}}), InputError, "a module's path"),
    Case("metadata of another kind", _packed({"unet.peft_type": "IA3"}), UnsupportedError, "(peft_type)"),
    Case(
        "metadata that names another base",
        of_tensors(
            {f"unet.{Q.replace('attn1.to_q', 'attn2.to_k')}.lora_A.weight": ones(4, 2048)},
            {"modelspec.architecture": "sdxl\nv1\x1b[2J" * 40},
        ),
        InputError,
        "its metadata says",
    ),
]
