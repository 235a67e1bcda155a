"""The peers' table from times alone: turns, paired ratios, what an earlier run leaves, the picture; and a peer that cannot run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from benchmarks.rig.peers import process
from benchmarks.rig.peers.picture import picture
from benchmarks.rig.peers.process import LeftOutError, PeerProcess, environment
from benchmarks.rig.peers.table import AT_ONCE, PEERS, groups_of, merged_results, side_result, table, turn_order

BASE = "quad-openvino"
DRIFT = [1.0, 1.5, 3.0]


def side(ms: float, **more: Any) -> dict[str, Any]:
    times = side_result([(ms * drift, 1.9 * ms) for drift in DRIFT], [(100.0 * drift, 200.0) for drift in DRIFT])
    return {**times, "peak_bytes": 2_130_000_000, "switch_ms": 0.41, "load_s": 4.2, "is_graph": False, **more}


RESULTS = {
    "32": {BASE: side(100.0), "merged-openvino-bf16": side(125.0, switch_ms=None, is_graph=True)},
    "64": {BASE: side(400.0), "sdcpp": side(2640.0)},
}


def test_turns_go_there_and_back() -> None:
    assert [turn_order("ABC", turn) for turn in range(3)] == [list("ABC"), list("CBA"), list("ABC")]


def test_a_machine_that_slows_down_moves_no_ratio() -> None:
    assert side(125.0)["ratio"] == pytest.approx(1.25)
    assert side(125.0)["median_ms"] == pytest.approx(187.5)
    assert side(125.0)["cpu_ratio"] == pytest.approx(1.1875)


def test_every_group_has_the_base_first_and_no_more_than_fit() -> None:
    groups = groups_of(tuple(PEERS), BASE)
    assert {name for group in groups for name in group} == set(PEERS)
    for group in groups:
        assert group[0] == BASE
        assert len(group) <= 1 + AT_ONCE
        assert len({PEERS[name].slow for name in group[1:]}) == 1
    assert groups_of((BASE,), BASE) == [[BASE]]


def test_what_is_measured_now_goes_before_what_was() -> None:
    old = {"32": {"genai": {"ratio": 2.0}, BASE: {"ratio": 1.0}}}
    assert merged_results(old, {"32": {"genai": {"ratio": 1.7}}, "64": {}}) == {
        "32": {"genai": {"ratio": 1.7}, BASE: {"ratio": 1.0}},
        "64": {},
    }


def test_the_table_says_size_ratio_memory_and_what_a_switch_is() -> None:
    lines = table(RESULTS).splitlines()
    assert len(lines) == 2 + 4
    assert "| 32x32 | 188 | 125 | 1.25 | 1.19 | 3 | 2.1 GB | another graph, 4 s |" in lines[3]
    assert "| 64x64 |" in lines[5]
    assert "| 26.40 |" in lines[5]


def test_bars_are_as_long_as_their_ratios_and_the_picture_is_whole() -> None:
    root = ElementTree.fromstring(picture(RESULTS, "a <machine> & threads"))
    space = "{http://www.w3.org/2000/svg}"
    ground, *bars = [float(bar.get("width", "0")) for bar in root.iter(f"{space}rect")]
    assert ground == float(root.get("width", "0"))
    assert bars[1] / bars[0] == pytest.approx(1.25, rel=1e-2)
    assert bars[3] / bars[2] == pytest.approx(6.6, rel=1e-2)
    assert max(bars) < ground
    assert "a <machine> & threads" in [text.text for text in root.iter(f"{space}text")]


def test_an_environment_that_cannot_be_made_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some.txt").write_text("nothing==1\n", encoding="ascii")
    monkeypatch.setattr(process, "LISTS", tmp_path)
    calls: list[Sequence[str]] = []

    def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        calls.append(words)
        return subprocess.CompletedProcess(words, int("pip" in words), "", "a line\nERROR: no matching distribution\n\n")

    with pytest.raises(LeftOutError, match=r"some\.txt cannot be installed: ERROR: no matching distribution"):
        environment(tmp_path / "envs", "some", run)
    assert len(calls) == 2


def test_an_environment_is_made_once_for_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = tmp_path / "some.txt"
    packages.write_text("nothing==1\n", encoding="ascii")
    monkeypatch.setattr(process, "LISTS", tmp_path)
    (tmp_path / "envs" / "some").mkdir(parents=True)
    calls: list[Sequence[str]] = []

    def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        calls.append(words)
        return subprocess.CompletedProcess(words, 0, "", "")

    for expected in (2, 2):
        environment(tmp_path / "envs", "some", run)
        assert len(calls) == expected
    packages.write_text("nothing==2\n", encoding="ascii")
    environment(tmp_path / "envs", "some", run)
    assert len(calls) == 4


WORKER = """
from benchmarks.rig.peers.loop import serve

def fail():
    raise ValueError("no adapter")

print("a library's line")
serve(lambda: [3.0, 4.0], fail)
"""


@pytest.mark.timeout(60)
def test_a_worker_answers_fails_and_ends_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "answering.py").write_text(WORKER, encoding="utf-8")
    (tmp_path / "ending.py").write_text("raise SystemExit('no such model')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    python, log = Path(sys.executable), tmp_path / "log"
    with PeerProcess(python, ["answering"], log, threads=1) as peer:
        assert peer.ask("step") == [3.0, 4.0]
        assert peer.ask("memory") > 1_000_000
        with pytest.raises(LeftOutError, match="ValueError: no adapter"):
            peer.ask("switch")
    with pytest.raises(LeftOutError, match="its process ended: no such model"):
        PeerProcess(python, ["ending"], log, threads=1)
