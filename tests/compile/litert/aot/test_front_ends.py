"""Front ends of MediaTek's and Samsung LSI's plugins: their own lists of operators, over recording stand-ins of the vendors' SDKs.

The stand-ins are compiled from C here, say yes to everything and count. Their output is thrown away.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("ai_edge_litert", reason="quad[litert] is not installed")

from quad.compile.litert.aot.chips import CHIPS, LSI, MEDIATEK, chips_named
from quad.compile.litert.aot.compile import compile_for_chips
from quad.compile.litert.aot.front_ends import run_front_end, sdk_folder
from quad.core.chips import ACCEPTED, NOT_COMPILED
from tests.compile.litert.aot.small_files import control_file, norm_file, slot_file

COMPILER = shutil.which("gcc") or shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler for the stand-ins")
SOURCES = Path(__file__).parent / "stand_ins"


def _compiled(source: str, *outputs: Path) -> None:
    outputs[0].parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([str(COMPILER), "-w", "-shared", "-fPIC", str(SOURCES / source), "-o", str(outputs[0])], check=True)
    for output in outputs[1:]:
        shutil.copy(outputs[0], output)


@pytest.fixture(scope="module")
def sdks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sdks")
    _compiled("neuron.c", root / "neuron" / MEDIATEK.library)
    _compiled("litecore.c", root / "litecore" / LSI.below / LSI.library, root / "litecore" / LSI.below / "libgraph_wrapper.so")
    _compiled("locale.c", root / "liblocale.so")
    return root


@pytest.fixture
def record(sdks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-ins are what the plugins find; what they are given is written down here."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(sdks / "neuron"))
    monkeypatch.setenv("EXYNOS_AI_LITECORE_ROOT", str(sdks / "litecore"))
    monkeypatch.setenv("STAND_IN_RECORD", str(tmp_path / "record"))
    return tmp_path / "record"


def written(content: bytes, folder: Path) -> Path:
    (folder / "unet").mkdir()
    (folder / "unet" / "model.tflite").write_bytes(content)
    return folder / "unet" / "model.tflite"


@pytest.mark.parametrize(("name", "major"), [("MT6991", "8"), ("MT6993", "9")])
def test_mediatek_s_front_end_takes_the_whole_file(
    name: str, major: str, record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_MAJOR", major)
    model = written(slot_file(), tmp_path)
    (result,) = compile_for_chips(model, chips_named([name]), {}, tmp_path)
    assert (result.state, result.ops, result.partitions, result.file) == (ACCEPTED, 3, 1, None)
    assert "neuron 3" in record.read_text()
    assert [path.name for path in model.parent.iterdir()] == ["model.tflite"]


def test_both_front_ends_take_a_norm_whole(record: Path, sdks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, operators, _ = norm_file()
    model = written(content, tmp_path)
    (result,) = compile_for_chips(model, chips_named(["MT6993"]), {}, tmp_path)
    assert (result.state, result.ops, result.partitions) == (ACCEPTED, operators, 1)
    monkeypatch.setenv("LD_PRELOAD", str(sdks / "liblocale.so"))
    sdk = sdk_folder(LSI)
    assert sdk is not None
    assert run_front_end(model, CHIPS["E9965"], sdk).whole
    assert f"litecore {operators}\n" in record.read_text()


def test_mediatek_s_front_end_refuses_another_operator(record: Path, tmp_path: Path) -> None:
    (result,) = compile_for_chips(written(control_file(), tmp_path), chips_named(["mt6991"]), {}, tmp_path)
    assert result.state == NOT_COMPILED
    assert "takes 1 of 2 operators" in result.note


def test_lsi_s_front_end_writes_the_whole_file_down(record: Path, sdks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its list counts when it builds the graph; the stand-in then refuses to make a binary, so nothing is called compiled."""
    monkeypatch.setenv("LD_PRELOAD", str(sdks / "liblocale.so"))
    chip, sdk = CHIPS["E9965"], sdk_folder(LSI)
    assert sdk is not None
    run = run_front_end(written(slot_file(), tmp_path), chip, sdk)
    assert run.whole
    assert not run.done
    assert record.read_text() == "litecore 3\n"


def test_lsi_s_front_end_refuses_another_operator(record: Path, sdks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", str(sdks / "liblocale.so"))
    (result,) = compile_for_chips(written(control_file(), tmp_path), chips_named(["E9965"]), {}, tmp_path)
    assert result.state == NOT_COMPILED
    assert "158" in result.note
    assert not record.exists()


@pytest.mark.parametrize("name", ["MT6993", "E9965"])
def test_without_an_sdk_nothing_is_said_to_be_accepted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    monkeypatch.delenv("EXYNOS_AI_LITECORE_ROOT", raising=False)
    (result,) = compile_for_chips(written(slot_file(), tmp_path), chips_named([name]), {}, tmp_path)
    assert (result.state, result.file, result.ops) == (NOT_COMPILED, None, 0)
    assert CHIPS[name].vendor.library in result.note
