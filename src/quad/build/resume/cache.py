"""The results of a build's stages, in a directory beside its output: a build that was killed at any point takes them up again.

Every piece is a sealed file under the identity of the build: all that its result depends on. A piece that was cut, or that belongs to
another build, is made anew. Of several processes the main one writes and reads, and tells the others what it has read: they may be on
machines that do not see its disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, final

import msgspec

from quad import __version__
from quad.build.request import BuildRequest
from quad.core.digests import digest, file_digest
from quad.core.errors import InputError, mismatch
from quad.core.processes import is_main
from quad.core.storage.checksummed_file import Arrays, read_checksummed, write_checksummed
from quad.core.storage.files import directory_lock
from quad.core.storage.reading import entry_names
from quad.lora.read import FloatAdapter
from quad.model.base.open import Base
from quad.quantize.observe.calibrate import CalibrationSample
from quad.quantize.processes.dealt import PACKED, shared
from quad.runtime.conditioning.picture import PictureSource, open_picture, to_rgb

T = TypeVar("T")
_log = logging.getLogger(__name__)
_SUFFIX, _VALUE = ".piece", "value"
# Their numbers go into every piece; one of another version may round otherwise.
_LIBRARIES = ("numpy", "scipy", "torch", "diffusers", "transformers", "onnx-ir", "onnxscript", "onnxruntime")
# Of a request: where things lie and what they are called, not what comes of them; models, adapters and samples count by content.
_PLACES = frozenset({"model", "adapters", "output", "samples", "name", "dump_passes", "encodings", "vae", "prediction"})


def cache_dir(request: BuildRequest) -> Path:
    """Where the stages' results lie until the bundle is written."""
    output = request.output.absolute()
    return output.parent / f".{output.name}.build"


def clear_cache(request: BuildRequest) -> None:
    """Remove the stages' results; of several processes the main one does."""
    if is_main():
        _log.info("stages' results cleared: %s", cache_dir(request))
        shutil.rmtree(cache_dir(request), ignore_errors=True)


@contextmanager
def build_lock(request: BuildRequest) -> Iterator[None]:
    """While the block runs no other build of the same output begins: each would take the other's pieces away.

    Raises:
        InputError: another one is at work. BackendError: the place cannot be written to.
    """
    if not is_main():
        yield
        return
    folder = cache_dir(request)
    busy = InputError(mismatch(f"{request.output}", "no other build at work on it", "one", "wait for it or choose another -o"))
    with directory_lock(folder, busy):
        try:
            yield
        finally:
            with suppress(OSError):  # gone with the pieces, or there are some left
                folder.rmdir()


def identity_of(request: BuildRequest, base: Base, adapters: Sequence[FloatAdapter], samples: Sequence[CalibrationSample]) -> str:
    """Digest of all that a build's result depends on."""
    options = {field.name: msgspec.to_builtins(getattr(request, field.name)) for field in fields(request) if field.name not in _PLACES}
    read = [msgspec.to_builtins(part) for part in (base.schedule, base.latent, base.text)]
    configs = {file.parent.name: file_digest(file) for file in sorted(base.directory.glob("*/config.json"))}
    files = [base.digest, configs, list(base.sizes), base.tokenizer, read, [[adapter.name, adapter.digest] for adapter in adapters]]
    versions = [__version__, *map(version, _LIBRARIES)]
    return digest([versions, options, files, msgspec.to_builtins(base.tasks), [_fingerprint(sample) for sample in samples]])


def _fingerprint(sample: CalibrationSample) -> list[Any]:
    return [sample.task, sample.prompt, sample.adapter, sample.steps, *map(_picture, (sample.image, sample.mask, sample.truth))]


def _picture(source: PictureSource | None) -> str | None:
    if source is None:
        return None
    pixels, _ = to_rgb(open_picture(source))
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()


@final
class BuildCache:
    """The pieces of one build.

    Args:
        folder: where they lie; None keeps nothing.
        identity: see `identity_of`.
    """

    def __init__(self, folder: Path | None, identity: str = "") -> None:
        self.folder = folder
        self.identity = identity
        self._there = frozenset(entry_names(folder) if folder is not None else ())
        self.resumed: list[str] = []

    @property
    def goes_on(self) -> bool:
        """Whether an earlier run has left anything."""
        return bool(self._there)

    def read(self, name: str) -> tuple[Any, Arrays] | None:
        """A piece that an earlier run has left: its value and arrays; None where there is nothing whole of this build."""
        return shared(lambda: self._read(name), PACKED)

    def _read(self, name: str) -> tuple[Any, Arrays] | None:
        if self.folder is None or f"{name}{_SUFFIX}" not in self._there:
            return None
        piece = read_checksummed(self._file(name), self.identity)
        if piece is None:
            _log.info("piece %s: broken, or of another build; made anew", name)
            return None
        self.resumed.append(name)
        _log.info("piece %s: taken from an earlier run", name)
        metadata, arrays = piece
        return json.loads(metadata[_VALUE]), arrays

    def write(self, name: str, value: Any, arrays: Arrays | None = None) -> None:
        """Keep a piece: a value of JSON, and arrays by name.

        Raises:
            BackendError: the disk is full or the place cannot be written to.
        """
        if self.folder is not None and is_main():
            text = json.dumps(value, allow_nan=False)  # in its own order: what comes of a build may depend on it
            write_checksummed(self._file(name), self.identity, {_VALUE: text}, arrays or {})

    def value(self, name: str, make: Callable[[], T], kind: type[T] | Any) -> T:
        """The result of `make`, of this run or an earlier one.

        Args:
            kind: its type, which msgspec can read from JSON.
        """
        piece = self.read(name)
        if piece is not None:
            value: T = msgspec.convert(piece[0], kind)
            return value
        value = make()
        self.write(name, msgspec.to_builtins(value))
        return value

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}{_SUFFIX}"
