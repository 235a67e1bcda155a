"""The card of a bundle: what it is, what its server takes, and its adapters beside each other."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from quad.core.errors import InputError
from quad.core.manifest import Golden, LatentPreview
from quad.serve.studio.heat_maps import cross_table, distances
from tests.runtime.conftest import write_manifest
from tests.serve.conftest import Serve, Served, _served


def test_the_card_says_what_the_bundle_is_and_what_may_be_asked(serve: Serve, tmp_path: Path) -> None:
    status, card = serve(real=True).call("GET", "/v1/bundle")
    assert (status, card["name"], card["engine"], card["sizes"], card["slots"]) == (200, "phone", "ort", [[16, 16]], 2)
    assert not any(card[word] for word in ("previews", "uploads", "reference", "report", "heat_maps", "merged"))
    assert {"euler", "lcm", "dpmsolver++-karras"} <= set(card["samplers"])
    assert card["peak_ram_bytes"] > 10**6
    assert serve(real=True, uploads=tmp_path).call("GET", "/v1/bundle")[1]["uploads"]


def test_distances_are_relative_and_nothing_is_said_of_other_calls() -> None:
    def golden(*values: float, probe: int = 0) -> Golden:
        return Golden(probe=probe, values=values, tolerance=0.0)

    assert distances({"a": golden(1.0, 1.0)}) is None
    table = distances({"a": golden(3.0, 4.0), "b": golden(0.0, 0.0), "c": golden(3.0, 4.0, probe=1), "d": golden(6.0, 8.0)})
    assert table is not None
    assert table.values[0] == (0.0, 1.0, None, 1.0)
    assert table.values[1] == (None, None, None, None)
    assert (table.values[3][0], table.values[2][2]) == (0.5, 0.0)


def test_a_measured_cross_table_is_read_as_it_is(tmp_path: Path) -> None:
    assert cross_table(tmp_path) is None
    file = tmp_path / "ablate.json"
    scores = [[0.0, 0.5], [0.25, 0.0]]
    file.write_text(json.dumps({"n": 1, "rows": [], "cross_table": {"names": ["a", "b"], "scores": scores, "best": "a"}}), "utf-8")
    table = cross_table(tmp_path)
    assert table is not None
    assert (table.names, [list(row) for row in table.values]) == (("a", "b"), scores)
    for text in ('{"cross_table": null}', '{"cross_table": {"names": ["a"], "scores": [[1, 2]]}}'):
        file.write_text(text, "utf-8")
        assert cross_table(tmp_path) is None
    file.write_text('{"cross_table": 3}', "utf-8")
    with pytest.raises(InputError, match=r"ablate\.json"):
        cross_table(tmp_path)


def _events(served: Served, **wanted: Any) -> list[tuple[str, dict[str, Any]]]:
    with served.http.answer("GET", f"/v1/requests/{served.ask(prompt='car', **wanted)}/events") as stream:
        lines = stream.read().decode().splitlines()
    return [(kind[7:], json.loads(data[6:])) for kind, data in zip(lines[::3], lines[1::3], strict=True)]


def test_previews_come_to_whoever_asks_where_the_bundle_has_colours(serve: Serve, bundle_copy: Path) -> None:
    assert {kind for kind, _ in _events(serve(real=True), previews=True)} == {"step", "end"}
    write_manifest(bundle_copy, preview=LatentPreview(((0.1,) * 4,) * 3, (0.0, 0.1, -0.1)))
    with _served(bundle_copy, real=True) as served:
        assert served.call("GET", "/v1/bundle")[1]["previews"]
        assert {kind for kind, _ in _events(served)} == {"step", "end"}
        previews = [data for kind, data in _events(served, previews=True) if kind == "preview"]
        assert [data["index"] for data in previews] == sorted({data["index"] for data in previews})
        for data in previews:
            assert np.asarray(Image.open(io.BytesIO(base64.b64decode(data["image"])))).shape == (4, 4, 3)
        assert msgspec.json.encode(previews)
