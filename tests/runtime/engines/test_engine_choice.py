"""Which engine is opened, and what is said where none can be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from quad.core.errors import BackendError, CompatibilityError, UsageError
from quad.runtime.engines.engine import ENGINES, default_threads, open_engine


def test_auto_takes_the_first_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_engine("auto", ("nowhere", "ort"), "w8a16").name == "ort"
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert open_engine("auto", ("openvino", "ort"), "w8a16").name == "ort"


def test_an_unknown_engine_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="auto or one of litert, openvino, ort, qnn, found 'tpu'"):
        open_engine("tpu", ("ort",), "w8a16")


def test_an_engine_that_the_bundle_does_not_offer_is_refused() -> None:
    says = "^engine: expected ort or openvino, which this bundle was built for, found qnn; .* --target that runs on qnn$"
    with pytest.raises(CompatibilityError, match=says):
        open_engine("qnn", ("ort", "openvino"), "w8a16")


@pytest.mark.parametrize(
    ("engine", "package", "install"),
    [
        ("ort", "onnxruntime", "onnxruntime"),
        ("openvino", "openvino", r"'quad\[openvino\]'"),
        ("qnn", "onnxruntime_qnn", r"'quad\[qnn\]'"),
        ("litert", "ai_edge_litert", r"'quad\[litert\]'"),
    ],
)
@pytest.mark.parametrize("wanted", ["by name", "auto"])
def test_a_missing_package_says_what_to_type(engine: str, package: str, install: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, ENGINES[engine], raising=False)
    says = f"^engine {engine}: expected the package {package}, found none; install it: pip install {install}$"
    with pytest.raises(BackendError, match=says):
        open_engine("auto" if wanted == "auto" else engine, (engine,), "w8a16")


def test_a_package_that_does_not_load_is_not_called_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "openvino.py").write_text("raise ImportError('libtbb.so.12: no such file', name='openvino')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    with pytest.raises(BackendError, match=r"found a broken one \(libtbb.so.12: no such file\); install it"):
        open_engine("openvino", ("openvino",), "w8a16")


def test_threads_are_at_least_one() -> None:
    assert default_threads() >= 1
