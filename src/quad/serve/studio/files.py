"""The page's files: a closed set, read once, so that no call reaches the disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

from quad.serve.api import JSON

PAGE: Final = Path(__file__).parent / "page"
# The runtime that works in the page, where a build has put it here.
DEVICE: Final = Path(__file__).parent / "device"
CONFIG_FILE: Final = "studio.json"
_TYPES: Final[Mapping[str, str]] = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": JSON,
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
}


class DevicePlace(msgspec.Struct, frozen=True, kw_only=True):
    """The runtime's folder and the bundle's, relative to the page."""

    runtime: str = "device/"
    bundle: str = "bundle/"


class StudioConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`studio.json`: which backends the page has.

    Args:
        server: the page's own server makes pictures.
        device: what makes them in the page itself; None where it is not there.
    """

    server: bool = True
    device: DevicePlace | None = None


@dataclass(frozen=True, kw_only=True)
class PageFile:
    """One file as it is sent."""

    content: bytes
    media_type: str

    @property
    def etag(self) -> str:
        return f'"{sha256(self.content).hexdigest()[:32]}"'


def page_files(page: Path = PAGE, device: Path = DEVICE) -> dict[str, PageFile]:
    """URL path -> file, of the page and of the runtime where it is there."""
    files = _below(page, "/")
    runtime = _below(device, "/device/") if device.is_dir() else {}
    config = StudioConfig(device=DevicePlace() if runtime else None)
    files["/"] = files.pop("/index.html")
    files[f"/{CONFIG_FILE}"] = PageFile(content=msgspec.json.encode(config), media_type=JSON)
    return {**files, **runtime}


def _below(root: Path, prefix: str) -> dict[str, PageFile]:
    paths = [path for path in sorted(root.rglob("*")) if path.suffix in _TYPES and path.is_file()]
    return {
        prefix + path.relative_to(root).as_posix(): PageFile(content=path.read_bytes(), media_type=_TYPES[path.suffix]) for path in paths
    }
