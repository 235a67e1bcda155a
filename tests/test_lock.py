"""The lock files: what `tools/lock.py` takes for a pin, and what it tells of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tools import lock

HASH = "0" * 64
GOOD = f"""# made
six==1.17.0 ; sys_platform == 'linux' \\
    --hash=sha256:{HASH} \\
    --hash=sha256:{HASH}
zipp==4.1.2 \\
    --hash=sha256:{HASH}
"""
PLACES = ("--index-url somewhere", "six @ file:///x", "-e .")


def test_pins_keep_their_lines() -> None:
    pins = lock.pins(GOOD)
    assert [str(pin.requirement) for pin in pins] == ['six==1.17.0; sys_platform == "linux"', "zipp==4.1.2"]
    assert "# made\n" + "".join(pin.text for pin in pins) == GOOD


@pytest.mark.parametrize(
    "line", ["six==1.17.0", "six>=1.0 \\\n    --hash=sha256:" + HASH, "--index-url somewhere", "six @ file:///x", "-e ."]
)
def test_a_line_without_hashes_or_with_a_place_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="neither a pin with hashes nor a comment"):
        lock.pins(GOOD + line + "\n")


def test_the_files_name_no_host() -> None:
    for name in (*lock.LOCKS, lock.CUDA, lock.CPU):
        assert not re.search(r"//|@", lock.file_of(name).read_text())


def test_what_is_asked_for_and_not_pinned_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*lock.LOCKS, lock.CUDA, lock.CPU):
        (tmp_path / f"{name}.txt").write_text(GOOD)
    monkeypatch.setattr(lock, "file_of", lambda name: tmp_path / f"{name}.txt")
    monkeypatch.setattr(lock, "required", lambda name: [lock.Requirement(text) for text in ("six>=1.0", "zipp<4", "numpy")])
    monkeypatch.setattr(lock, "version", lambda name: {"six": "1.17.0+local", "zipp": "4.1.1"}[name])
    told = [problem for problem in lock.problems() if problem.startswith("requirements/install.txt")]
    assert told == [
        "requirements/install.txt: expected a pin for zipp<4, found zipp==4.1.2; run make lock",
        "requirements/install.txt: expected a pin for numpy, found none; run make lock",
        "requirements/install.txt: expected zipp 4.1.2 installed, found 4.1.1; run make install",
    ]


def test_torch_for_cpus_is_a_build_of_the_locked_version() -> None:
    (torch,) = (pin for pin in lock.pins(lock.file_of("install").read_text()) if pin.requirement.name == "torch")
    (build,) = lock.pins(lock.file_of(lock.CPU).read_text())
    assert lock.cpu_build(torch) == [build]
    assert torch.requirement.specifier.contains("2.13.0+cpu")
    assert lock.cpu_build(lock.Pin(lock.Requirement("torch==0.1"), "")) == []
