"""Versions of an uploaded adapter: the one before runs again when asked for, and takes no place that an upload needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quad.core.storage.pack import write_pack
from quad.serve.limits import Limits
from tests.serve.conftest import Serve, Served


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    folder = tmp_path / "uploads"
    folder.mkdir()
    return folder


def _upload(served: Served, pack: Path, name: str = "ink") -> None:
    assert served.call("PUT", f"/v1/adapters/{name}", pack.read_bytes(), "application/octet-stream")[0] == 200


def _picture(served: Served) -> Any:
    client = served.client()
    client.set_adapters("ink")
    return np.asarray(client("car", seed=1).images[0])


def _has_previous(served: Served) -> bool:
    (state,) = [one for one in served.call("GET", "/v1/adapters")[1]["adapters"] if one["name"] == "ink"]
    return bool(state["previous"])


def test_there_and_back_again(serve: Serve, tmp_path: Path, uploads: Path, ink: Any) -> None:
    served, (manifest, tensors) = serve(real=True, uploads=uploads), ink
    packs = [tmp_path / "1.qpack", tmp_path / "2.qpack"]
    write_pack(packs[0], manifest, tensors)
    write_pack(packs[1], manifest, {name: array // 2 for name, array in tensors.items()})
    _upload(served, packs[0])
    first = _picture(served)
    assert not _has_previous(served)
    status, body = served.call("POST", "/v1/adapters/ink/rollback")
    assert (status, "remove it instead" in body["error"]) == (409, True)
    _upload(served, packs[1])
    second = _picture(served)
    assert _has_previous(served)
    assert (first != second).any()
    for expected in (first, second, first):
        assert served.call("POST", "/v1/adapters/ink/rollback") == (200, {"name": "ink"})
        np.testing.assert_array_equal(_picture(served), expected)
    assert served.call("DELETE", "/v1/adapters/ink")[0] == 204
    assert not list(uploads.iterdir())


def test_only_uploads_are_rolled_back_and_only_where_they_are_taken(serve: Serve, uploads: Path) -> None:
    assert serve(real=True).call("POST", "/v1/adapters/sketch/rollback")[0] == 403
    served = serve(real=True, uploads=uploads)
    assert served.call("POST", "/v1/adapters/sketch/rollback")[0] == 409
    assert served.call("POST", "/v1/adapters/none/rollback")[0] == 404


def test_a_version_before_gives_its_place_to_an_upload(serve: Serve, tmp_path: Path, uploads: Path, ink: Any) -> None:
    served, pack = serve(real=True, uploads=uploads, limits=Limits(max_uploads=2)), tmp_path / "ink.qpack"
    write_pack(pack, *ink)
    for name, n_packs, has_previous in (("ink", 1, False), ("ink", 2, True), ("other", 2, False), ("ink", 2, False)):
        _upload(served, pack, name)
        assert (len(list(uploads.iterdir())), _has_previous(served)) == (n_packs, has_previous)
