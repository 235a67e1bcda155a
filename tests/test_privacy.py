"""Nothing is written outside the paths that were given, and nobody is called: neither by quad nor by the libraries below it.

A verb runs in a network of its own in which every address leads back to it and every call is counted, with an empty home directory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.runtime.conftest import litert_bundle as litert_bundle
from tests.runtime.conftest import tiny_bundle as tiny_bundle
from tests.small_model import adapter_files as adapter_files
from tests.small_model import base as base
from tests.small_model import model_dir as model_dir

# Every address is reached through the loopback, so that a call goes out and is counted by the namespace itself.
ALONE = """
ip link set lo up && ip addr add 198.51.100.2/24 dev lo && ip route add default via 198.51.100.2 dev lo && "$@"
status=$?; cat /proc/net/snmp >&2; exit $status
"""
API = """
import sys
from quad import QuadPipeline
QuadPipeline.from_pretrained(sys.argv[1])("it", seed=1).images[0].save(sys.argv[2])
"""

SERVE = """
import json, signal, subprocess, sys
from pathlib import Path
from PIL import Image
from quad.serve import QuadClient

process = subprocess.Popen([sys.executable, "-m", "quad", "serve", *sys.argv[1:], "--json"], stdout=subprocess.PIPE, text=True)
told = json.loads(process.stdout.readline())
client = QuadClient(told.get("socket") or told["address"], Path(told["token_file"]).read_text() if "address" in told else None)
client("make it night", task="transform", image=Image.new("RGB", (20, 20), "red"), seed=1)  # a decoder's process runs too
for name in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
    for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
        here, there = (place.split(":") for place in line.split()[1:3])
        own = int(told["address"].rpartition(":")[2]) if "address" in told else None
        assert name == "tcp" and here[0] == "0100007F" and own in (int(here[1], 16), int(there[1], 16)), (name, line)
names = {words[7] for words in map(str.split, Path("/proc/net/unix").read_text().splitlines()[1:]) if len(words) > 7}
assert names == ({told["socket"]} if "socket" in told else set()), names
process.send_signal(signal.SIGTERM)
assert process.wait(60) == 0
"""

BUILD = """
import sys
from pathlib import Path
import quad
from quad.build.request import BuildRequest
from tests.build.samples import SAMPLES
model, output = map(Path, sys.argv[1:3])
adapters = {name: Path(file) for name, file in zip(sys.argv[3::2], sys.argv[4::2])}
quad.build(BuildRequest(model=model, adapters=adapters, output=output, samples=SAMPLES, precision='w8a16', distill_steps=0))
"""


def _can_be_alone() -> bool:
    if not sys.platform.startswith("linux") or shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return subprocess.run(["unshare", "-n", "sh", "-c", ALONE, "sh", "true"], check=False, capture_output=True, timeout=30).returncode == 0


def _counters(text: str) -> dict[str, int]:
    """`Protocol.Counter` -> count, of /proc/net/snmp."""
    counters: dict[str, int] = {}
    lines = [line.split() for line in text.splitlines() if line.startswith(("Udp:", "Tcp:", "Ip:"))]
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        counters |= {f"{names[0]}{name}": int(value) for name, value in zip(names[1:], values[1:], strict=True)}
    return counters


def _alone(command: list[str], home: Path, **environment: str) -> dict[str, int]:
    home.mkdir()
    gone = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
    inherited = {name: value for name, value in os.environ.items() if name not in gone}
    (home / "tmp").mkdir()
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", ALONE, "sh", *command],
        check=False, capture_output=True, text=True, timeout=240,
        env={**inherited, "HOME": str(home), "TMPDIR": str(home / "tmp"), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return _counters(done.stderr)


def _left(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())


CALLS = ("Udp:OutDatagrams", "Tcp:ActiveOpens")
needs_namespace = pytest.mark.skipif(not _can_be_alone(), reason="needs the right to make a network namespace, and iproute2")


@needs_namespace
@pytest.mark.parametrize("verb", ["run", "run on openvino", "bench", "inspect", "api"])
def test_a_verb_writes_nothing_elsewhere_and_calls_nobody(verb: str, tiny_bundle: Path, tmp_path: Path) -> None:
    output, quad = tmp_path / "out.png", [sys.executable, "-m", "quad"]
    run = [*quad, "run", str(tiny_bundle), "--task", "text-to-image", "--prompt", "it", "-o", str(output)]
    command = {
        "run": run,
        "run on openvino": [*run, "--engine", "openvino"],
        "bench": [*quad, "bench", str(tiny_bundle), "--repeats", "1"],
        "inspect": [*quad, "inspect", str(tiny_bundle)],
        "api": [sys.executable, "-c", API, str(tiny_bundle), str(output)],
    }[verb]
    counters = _alone(command, tmp_path / "home")
    assert {name: counters[name] for name in CALLS} == dict.fromkeys(CALLS, 0)
    assert _left(tmp_path / "home") == []


@needs_namespace
def test_litert_writes_nothing_elsewhere_and_calls_nobody(litert_bundle: Path, tmp_path: Path) -> None:
    counters = _alone([sys.executable, "-c", API, str(litert_bundle), str(tmp_path / "out.png")], tmp_path / "home")
    assert {name: counters[name] for name in CALLS} == dict.fromkeys(CALLS, 0)
    assert _left(tmp_path / "home") == []


@needs_namespace
def test_a_build_writes_nothing_elsewhere_and_calls_nobody(model_dir: Path, adapter_files: dict[str, Path], tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        BUILD,
        str(model_dir),
        str(tmp_path / "bundle"),
        *(str(word) for adapter in adapter_files.items() for word in adapter),
    ]
    counters = _alone(command, tmp_path / "home")
    assert {name: counters[name] for name in CALLS} == dict.fromkeys(CALLS, 0)
    assert _left(tmp_path / "home") == []


@needs_namespace
@pytest.mark.parametrize("place", ["--socket", "--port"])
def test_a_server_writes_nothing_elsewhere_and_has_no_socket_but_its_own(place: str, tiny_bundle: Path, tmp_path: Path) -> None:
    with TemporaryDirectory(prefix="q") as folder:  # short enough for a socket's address
        options = [place, f"{folder}/s"] if place == "--socket" else [place, "0", "--token-file", f"{folder}/t"]
        counters = _alone([sys.executable, "-c", SERVE, str(tiny_bundle), *options, "--allow-uploads"], tmp_path / "home")
        assert counters["Udp:OutDatagrams"] == 0
        assert bool(counters["Tcp:ActiveOpens"]) == (place == "--port")  # the test's own calls, each to that port
        assert os.listdir(folder) == []
    assert _left(tmp_path / "home") == []


@needs_namespace
def test_the_count_sees_a_call(tmp_path: Path) -> None:
    ask = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))"
    assert _alone([sys.executable, "-c", ask], tmp_path / "home")["Udp:OutDatagrams"] == 1


def test_who_wants_reports_can_have_them() -> None:
    show = "import os, quad; print(os.environ['ORT_DISABLE_TELEMETRY'], os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    wanted = {**os.environ, "ORT_DISABLE_TELEMETRY": "0"}
    wanted.pop("HF_HUB_DISABLE_TELEMETRY", None)
    assert subprocess.run([sys.executable, "-c", show], env=wanted, capture_output=True, text=True, check=True).stdout.split() == ["0", "1"]
