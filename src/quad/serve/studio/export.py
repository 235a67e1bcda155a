"""The page as a folder that any static host serves: page, runtime, bundle, and a service worker that keeps them for visits offline."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Final

import msgspec

from quad.core.errors import UnsupportedError, mismatch
from quad.core.manifest import BUNDLE_FILE
from quad.core.progress import Progress, silent
from quad.core.storage.directories import new_directory, require_replaceable
from quad.core.storage.reading import reading_from
from quad.runtime.bundle import Bundle, open_bundle
from quad.serve.studio.files import CONFIG_FILE, DEVICE, DevicePlace, StudioConfig, page_files
from quad.serve.studio.headers import POLICY

_OWN: Final = Path(__file__).parent / "static_host"
_INDEX, _START, _WORKER, _MAIN = "index.html", "start.js", "sw.js", "main.js"
_PLACEHOLDER: Final = "const PINNED = {};"
# A meta element cannot say who may frame the page.
_IN_A_HEADER_ALONE: Final = "frame-ancestors"


class Pinned(msgspec.Struct, frozen=True):
    """A file of the page as a browser is to find it: its digest as Subresource Integrity writes it."""

    integrity: str
    bytes: int


def export_page(bundle: str | Path, folder: Path, progress: Progress = silent, device: Path = DEVICE) -> dict[str, int]:
    """Write the folder, whole or not at all.

    Args:
        folder: new, or an earlier export, which is replaced.
        device: the runtime for pages, as `make js` writes it.

    Returns:
        Name in the folder -> its bytes.

    Raises:
        UnsupportedError: the bundle is none that runs in a browser, or this install has no runtime for pages.
        InputError, VerificationError: there is no bundle, or it was changed; the folder holds something else.
    """
    require_replaceable(folder, CONFIG_FILE, "--export")
    progress("check", 0.0)
    opened = open_bundle(bundle)
    _require_browser(opened)
    page = {path.removeprefix("/"): file.content for path, file in page_files(device=device).items()}
    if not any(name.startswith(DevicePlace().runtime) for name in page):
        hint = "run make js in a checkout, where Node is, and export with that install"
        raise UnsupportedError(mismatch("--export", "the runtime for pages", "none in this install", hint))
    files = _with_start(page)
    with new_directory(folder, CONFIG_FILE, "--export") as stage:
        for name, content in files.items():
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            (stage / name).write_bytes(content)
        shipped = (BUNDLE_FILE, *opened.manifest.files)
        for done, name in enumerate(shipped):
            progress("copy", done / len(shipped))
            target = stage / DevicePlace().bundle / name
            target.parent.mkdir(parents=True, exist_ok=True)
            source = opened.root / name if name == BUNDLE_FILE else opened.path(name)
            with reading_from(source):
                shutil.copyfile(source, target)
        return {path.relative_to(stage).as_posix(): path.stat().st_size for path in sorted(stage.rglob("*")) if path.is_file()}


def _require_browser(bundle: Bundle) -> None:
    manifest = bundle.manifest
    if "ort" not in manifest.engines:
        expected = "a bundle that ONNX Runtime runs"
        raise UnsupportedError(mismatch("--export", expected, f"one for {manifest.target}", "build it again with --target cpu"))


def _with_start(page: Mapping[str, bytes]) -> dict[str, bytes]:
    """The page's files, its own server's ones replaced by those that a static host needs."""
    config = msgspec.json.encode(StudioConfig(server=False, device=DevicePlace()))
    files = {name or _INDEX: content for name, content in page.items()} | {CONFIG_FILE: config}
    index = files.pop(_INDEX).decode()
    pinned = {name: _pin(content) for name, content in files.items()}
    start = _own_script(_START, pinned)
    files[_INDEX] = _index(index, {**pinned, _START: _pin(start)}).encode()
    files[_START] = start
    pinned |= {name: _pin(files[name]) for name in (_INDEX, _START)}
    return {**files, _WORKER: _own_script(_WORKER, pinned)}


def _own_script(name: str, pinned: Mapping[str, Pinned]) -> bytes:
    text = (_OWN / name).read_text("utf-8")
    return text.replace(_PLACEHOLDER, f"const PINNED = {json.dumps(msgspec.to_builtins(dict(pinned)), sort_keys=True)};").encode()


def _index(text: str, pinned: Mapping[str, Pinned]) -> str:
    """The document with the policy in it, its first script in place of the page's, and digests on what it names."""
    policy = "; ".join(part for part in POLICY.split("; ") if not part.startswith(_IN_A_HEADER_ALONE))
    meta = f'<meta charset="utf-8">\n    <meta http-equiv="Content-Security-Policy" content="{escape(policy)}">'
    text = text.replace('<meta charset="utf-8">', meta, 1).replace(f'src="{_MAIN}"', f'src="{_START}"')
    return re.sub(r'\b(src|href)="([^"]+)"', lambda found: _with_integrity(found, pinned), text)


def _with_integrity(found: re.Match[str], pinned: Mapping[str, Pinned]) -> str:
    file = pinned.get(found[2].removeprefix("./"))
    return found[0] if file is None or not found[2].endswith((".js", ".css")) else f'{found[0]} integrity="{file.integrity}"'


def _pin(content: bytes) -> Pinned:
    return Pinned(f"sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}", len(content))
