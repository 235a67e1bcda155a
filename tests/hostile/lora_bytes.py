"""LoRA files whose bytes are wrong: cut, with headers that lie, or other formats under this name."""

from __future__ import annotations

import gzip
import io
import pickle  # noqa: TID251 - what is written here must never be opened
import tarfile
import zipfile
import zlib
from collections.abc import Callable

import torch
from safetensors.torch import save

from quad.core.errors import InputError
from tests.hostile.raw import entry, headed, of_bytes, ones
from tests.hostile.refusal import Case

Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
PAIR = {f"unet.{Q}.lora_A.weight": ones(4, 32), f"unet.{Q}.lora_B.weight": ones(32, 4)}
A, B = PAIR
WHOLE = save(PAIR)
HEADER = int.from_bytes(WHOLE[:8], "little")
DATA = bytes(1024)

_CUTS = {
    "nothing": 0,
    "one byte": 1,
    "half a length": 4,
    "seven bytes": 7,
    "the length alone": 8,
    "one byte of header": 9,
    "half a header": 8 + HEADER // 2,
    "all but a byte of header": 7 + HEADER,
    "the header alone": 8 + HEADER,
    "one byte of data": 9 + HEADER,
    "half the data": 8 + HEADER + 512,
    "all but a byte": len(WHOLE) - 1,
}

_LENGTHS: dict[str, bytes] = {
    "0": headed({A: entry(0, 16)}, DATA, 0),
    "1": headed({A: entry(0, 16)}, DATA, 1),
    "one too long": headed({A: entry(0, 16)}, b"", len(headed({A: entry(0, 16)})) - 7),
    "over 100 MB": headed({}, b"", 100 * 2**20 + 1),
    "a terabyte": headed({}, b"", 2**40),
    "2^63": headed({}, b"", 2**63),
    "2^64-1": headed({}, b"", 2**64 - 1),
}

_HEADERS: dict[str, Callable[[], bytes]] = {
    "no JSON": lambda: headed(b"{'a': 1}"),
    "not UTF-8": lambda: headed(b'{"\xff\xfe": {}}'),
    "UTF-16": lambda: headed("{}".encode("utf-16")),
    "a list": lambda: headed([]),
    "a string": lambda: headed("tensors"),
    "a number": lambda: headed(7),
    "null": lambda: headed(None),
    "deep lists": lambda: headed(b"[" * 100_000),
    "deep objects": lambda: headed(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "50 MB of spaces": lambda: headed(b" " * (50 * 2**20)),
    "a name of 20 MB": lambda: headed({"x" * (20 * 2**20): 3}),
    "zero bytes": lambda: headed(bytes(64)),
    "an entry twice": lambda: headed(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}', bytes(16)
    ),
    "an entry of null": lambda: headed({A: None}),
    "an entry of a string": lambda: headed({A: "F32"}, bytes(16)),
    "no dtype": lambda: headed({A: {"shape": [2, 2], "data_offsets": [0, 16]}}, bytes(16)),
    "no shape": lambda: headed({A: {"dtype": "F32", "data_offsets": [0, 16]}}, bytes(16)),
    "no offsets": lambda: headed({A: {"dtype": "F32", "shape": [2, 2]}}, bytes(16)),
    "no data": lambda: headed({A: entry(0, 16)}),
    "metadata of numbers": lambda: headed({"__metadata__": {"r": 4}, A: entry(0, 16)}, bytes(16)),
    "metadata of a list": lambda: headed({"__metadata__": [], A: entry(0, 16)}, bytes(16)),
    "metadata of objects": lambda: headed({"__metadata__": {"a": {"b": "c"}}, A: entry(0, 16)}, bytes(16)),
}

_ENTRIES: dict[str, tuple[dict[str, object], int]] = {
    "offsets that overlap": ({A: entry(0, 16), B: entry(8, 24)}, 24),
    "offsets of the same bytes": ({A: entry(0, 16), B: entry(0, 16)}, 16),
    "offsets in reverse": ({A: entry(16, 0)}, 16),
    "offsets beyond the end": ({A: entry(0, 16)}, 12),
    "offsets with a hole": ({A: entry(0, 16), B: entry(20, 36)}, 36),
    "offsets that begin late": ({A: entry(8, 24)}, 24),
    "offsets below zero": ({A: entry(-16, 0)}, 16),
    "offsets of floats": ({A: entry(0.0, 16.0)}, 16),
    "offsets of half": ({A: entry(0.5, 16.5)}, 17),
    "offsets of strings": ({A: entry("0", "16")}, 16),
    "offsets past 64 bits": ({A: entry(0, 2**70)}, 16),
    "offsets near 2^64": ({A: entry(2**64 - 16, 2**64 - 1)}, 16),
    "one offset": ({A: {"dtype": "F32", "shape": [2, 2], "data_offsets": [0]}}, 16),
    "three offsets": ({A: {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16, 32]}}, 32),
    "bytes left over": ({A: entry(0, 16)}, 40),
    "an unknown dtype": ({A: entry(0, 16, dtype="Q4_K")}, 16),
    "a dtype of a number": ({A: entry(0, 16, dtype=32)}, 16),
    "a dtype of other size": ({A: entry(0, 16, dtype="F16")}, 16),
    "a shape below zero": ({A: entry(0, 16, shape=[-2, -2])}, 16),
    "a shape of zero with bytes": ({A: entry(0, 16, shape=[0, 4])}, 16),
    "a shape that overflows": ({A: entry(0, 16, shape=[2**62, 2**62])}, 16),
    "a shape that wraps to 4": ({A: entry(0, 16, shape=[2**32 + 4, 2**32])}, 16),
    "a shape of floats": ({A: entry(0, 16, shape=[2.0, 2.0])}, 16),
    "a shape of strings": ({A: entry(0, 16, shape=["2", "2"])}, 16),
    "a shape in a shape": ({A: entry(0, 16, shape=[[2, 2]])}, 16),
    "a shape of null": ({A: entry(0, 16, shape=None)}, 16),
    "a shape past 64 bits": ({A: entry(0, 16, shape=[2**80])}, 16),
}


def _tar() -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for name, data in (("pickle", pickle.dumps({}, 2)), ("tensors", DATA), ("storages", DATA)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return held.getvalue()


def _zip() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as packed:
        packed.writestr("model.safetensors", WHOLE)
    return held.getvalue()


def _torch(zipped: bool) -> bytes:
    held = io.BytesIO()
    torch.save(PAIR, held, _use_new_zipfile_serialization=zipped)
    return held.getvalue()


_PICKLE = "a pickle"
_FORMATS: dict[str, tuple[Callable[[], bytes], str]] = {
    **{f"a pickle of protocol {n}": (lambda n=n: pickle.dumps({"a": [1.5] * 64}, n), _PICKLE if n > 1 else "") for n in range(6)},
    "torch.save": (lambda: _torch(True), "a zip archive, as torch.save writes one: a pickle"),
    "torch.save of old": (lambda: _torch(False), _PICKLE),
    "a tar of torch before 0.1.10": (_tar, ""),
    "gzip": (lambda: gzip.compress(WHOLE), "a gzip archive"),
    "zip": (_zip, "a zip archive"),
    "zlib": (lambda: zlib.compress(WHOLE), ""),
    "PNG": (lambda: b"\x89PNG\r\n\x1a\n" + DATA, ""),
    "GGUF": (lambda: b"GGUF\x03\0\0\0" + DATA, "a GGUF file"),
    "ONNX": (lambda: b"\x08\x08\x12\x07pytorch" + DATA, ""),
    "NumPy": (lambda: b"\x93NUMPY\x01\0v\0" + DATA, ""),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + DATA, ""),
    "ELF": (lambda: b"\x7fELF\x02\x01\x01" + DATA, ""),
    "a web page": (lambda: b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
    "a web page after white space": (lambda: b"\n\n  <html><body>Sign in</body></html>", ""),
    "a git-lfs pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n", "a git-lfs pointer"),
    "JSON": (lambda: b'{"r": 4, "lora_alpha": 8, "peft_type": "LORA"}', "a JSON file"),
    "plain words": (lambda: b"Access to this model is restricted.\n" * 9, ""),
}

_THEN = "expected a whole safetensors file, found "
CUT = [Case(f"cut after {name}", of_bytes(WHOLE[:length]), InputError, _THEN) for name, length in _CUTS.items()]
LENGTHS = [Case(f"a header of length {name}", of_bytes(content), InputError, _THEN) for name, content in _LENGTHS.items()]
HEADERS = [Case(f"a header with {name}", of_bytes(content), InputError, _THEN) for name, content in _HEADERS.items()]
ENTRIES = [Case(name, of_bytes(headed(entries, bytes(n))), InputError, _THEN) for name, (entries, n) in _ENTRIES.items()]
FORMATS = [Case(name, of_bytes(content), InputError, _THEN + says) for name, (content, says) in _FORMATS.items()]
