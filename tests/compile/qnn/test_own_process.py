"""Qualcomm's compiler in a process of its own: the same binary to run, and one line where it fails or is killed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quad.compile.qnn.htp import compile_htp
from quad.compile.qnn.own_process import compile_in_own_process
from quad.core.errors import BackendError
from tests.compile.qnn.placed_htp import SOC, Placed, fed

pytest.importorskip("onnxruntime_qnn")


@pytest.mark.parametrize("placed", [8], indirect=True)
def test_a_graph_of_many_weights_gives_the_same_numbers(placed: Placed, binary: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from quad.runtime.engines.qnn import htp_session

    monkeypatch.setattr("quad.compile.artifact.EXTERNAL_DATA_BYTES", 0)
    compiled = compile_htp(placed.graph, tmp_path / "unet", SOC)
    assert compiled.peak_ram_bytes > 0
    assert {path.name for path in (tmp_path / "unet").iterdir()} == {"model.onnx", "model_qnn.bin", "ports.json"}
    feed = fed(placed)["base"]
    here, apart = (htp_session(file).run(None, dict(feed))[0] for file in (binary, tmp_path / "unet" / "model.onnx"))
    np.testing.assert_array_equal(here, apart)


def test_a_refusal_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "placed.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match=rf"{tmp_path.name} on SM8750: expected a graph that the compiler takes whole, found "):
        compile_in_own_process(tmp_path / "placed.onnx", tmp_path / "model.onnx", "SM8750")


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_a_compiler_that_was_killed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))
    with pytest.raises(BackendError, match="expected enough memory for Qualcomm's compiler, found too little"):
        compile_in_own_process(tmp_path / "placed.onnx", tmp_path / "model.onnx", "SM8750")
