"""LoRA files that clients send: admitted on the server's machine, or refused with the reasons, beside everything else."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from quad import QuadPipeline
from quad.admit.admit import admit
from quad.admit.request import AdaptRequest
from quad.core.errors import BusyError, CompatibilityError, InputError, QuadError, UsageError
from quad.core.storage.pack import write_pack
from quad.serve.admission import worker
from quad.serve.admission.messages import AdmissionJob, Refused
from quad.serve.admission.options import AdmissionOptions
from quad.serve.limits import Limits
from tests.admit.frozen import freeze, write_later_lora
from tests.serve.conftest import Served, _served, same

# Stands in for an admission that takes its time: it reads the job and waits for the end of its stream.
SLOW = (sys.executable, "-S", "-c", "import os\nwhile os.read(0, 65536): pass")
CRASH = (sys.executable, "-S", "-c", "import os\nos.read(0, 4)\nos._exit(7)")


@pytest.fixture(scope="module")
def frozen(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return freeze(tiny_bundle, tmp_path_factory.mktemp("frozen") / "phone")


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    (tmp_path / "uploads").mkdir()
    return tmp_path / "uploads"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return write_later_lora(tmp_path / "ink.safetensors")


@pytest.fixture
def served(frozen: Path, uploads: Path) -> Iterator[Served]:
    with _served(frozen, real=True, uploads=uploads) as server:
        yield server


def slow(frozen: Path, uploads: Path, command: Any = SLOW, **limits: Any) -> Any:
    return _served(frozen, real=True, uploads=uploads, admission_command=command, limits=Limits(**limits))


def test_a_lora_becomes_an_adapter_and_its_sender_hears_what_was_measured(
    served: Served, frozen: Path, lora: Path, uploads: Path, tmp_path: Path
) -> None:
    client = served.client()
    verdict = client.admit(lora, "ink")
    expected = admit(AdaptRequest(frozen, "ink", lora, output=tmp_path / "ink.qpack"))
    assert [file.read_bytes() for file in uploads.iterdir()] == [expected.pack.read_bytes()]
    assert (verdict.effect, verdict.applied, verdict.rank) == (expected.trial["effect"], 1.0, 2)
    assert verdict.clipped == expected.to_json()["quality"]["lost"]
    assert verdict.headroom is not None
    assert 0 < verdict.peak_ram_bytes == served.service.admitter.peak_ram_bytes
    assert any("--base" in line for line in verdict.unchecked)
    assert b'quad_admissions_total{outcome="admitted"} 1' in served.call("GET", "/metrics")[1]
    pipe = QuadPipeline.from_pretrained(frozen, threads=1)
    pipe.load_lora_weights(expected.pack, "ink")
    for one in (client, pipe):
        one.set_adapters("ink")
    same(client, pipe, "car")


def test_its_task_and_how_it_is_run_are_what_its_sender_says(
    served: Served, frozen: Path, lora: Path, uploads: Path, tmp_path: Path
) -> None:
    client = served.client()
    options = AdmissionOptions(task="drawing", like="text-to-image", sampler="ddim:3", guidance=2.0, trigger="in ink", min_energy=0.5)
    verdict = client.admit(lora, "ink", options)
    request = AdaptRequest(
        frozen, "ink", lora, output=tmp_path / "ink.qpack", task="drawing", like="text-to-image", defaults=options.defaults, min_energy=0.5
    )
    assert [file.read_bytes() for file in uploads.iterdir()] == [admit(request).pack.read_bytes()]
    assert verdict.tasks == ("drawing",)
    assert (client.tasks["drawing"].sampler.steps, client.tasks["drawing"].guidance) == (3, 2.0)
    assert served.call("GET", "/v1/adapters")[1]["adapters"][-1]["defaults"]["trigger_words"] == "in ink"
    assert client("car", task="drawing").adapters == {"ink": 1.0}
    again = served.call("PUT", "/v1/adapters/ink?like=text-to-image&allow_unused_keys=true", lora.read_bytes(), "application/octet-stream")
    assert again[1]["verdict"]["tasks"] == ["ink"]  # its own name's, where none is told


@pytest.mark.parametrize(
    ("query", "status", "says"),
    [
        ("task=a/b", 400, "matching regex"),
        ("tasks=a", 400, "unknown field `tasks`"),
        ("task=a&task=b", 400, "each name once, found one twice"),
        ("min_energy=nan", 400, r"min_energy"),
        ("guidance=null", 400, "a value of guidance"),
        ("sampler=fast", 400, "sampler"),
        ("task=text-to-image", 409, "task: expected a new one"),
        ("task=drawing", 400, "^task: expected a task of the bundle"),
        ("like=drawing", 400, "^like: expected a task of the bundle"),
    ],
)
def test_options_that_mean_nothing_are_refused(query: str, status: int, says: str, served: Served, lora: Path, uploads: Path) -> None:
    actual, body = served.call("PUT", f"/v1/adapters/ink?{query}", lora.read_bytes(), "application/octet-stream")
    assert (actual, body["kind"]) == (status, "UsageError")
    assert re.search(says, body["error"])
    assert not list(uploads.iterdir())


def test_one_that_does_not_fit_is_refused_with_the_reasons_and_nothing_is_left(served: Served, uploads: Path, tmp_path: Path) -> None:
    loud = write_later_lora(tmp_path / "loud.safetensors", 1.5)
    status, body = served.call("PUT", "/v1/adapters/ink", loud.read_bytes(), "application/octet-stream")
    assert (status, body["kind"]) == (422, "CompatibilityError")
    assert body["reasons"]["mid.to_q.in"].endswith("of the range")
    with pytest.raises(CompatibilityError, match=r"1 that lose more: mid\.to_q\.in"):
        served.client().admit(loud, "ink")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(loud.read_bytes().replace(b"conv_in.lora_A", b"conv_on.lora_A"))
    with pytest.raises(QuadError, match=r"^adapter 'ink'.*conv_on") as told:
        served.client().load_lora_weights(broken, "ink")
    assert "/" not in str(told.value).split(";")[0]  # not where the server keeps it
    assert not list(uploads.iterdir())
    assert "ink" not in served.client().adapters
    assert served.service.admitter.outcomes == {"admitted": 0, "refused": 3}


def test_a_pack_is_taken_as_before_and_has_no_verdict(served: Served, lora: Path, ink: Any, tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "ink.qpack", *ink) and tmp_path / "ink.qpack"
    status, body = served.call("PUT", "/v1/adapters/ink", pack.read_bytes(), "application/octet-stream")
    assert (status, body) == (200, {"name": "ink"})
    with pytest.raises(InputError, match="a pack, which the server has taken"):
        served.client().admit(pack, "pen")
    with pytest.raises(UsageError, match="a pack, which says how it is run"):
        served.client().admit(pack, "brush", AdmissionOptions(guidance=2.0))
    with pytest.raises(UsageError, match="'text-to-image', which is a task"):
        served.client().load_lora_weights(lora, "text-to-image")


def test_while_one_is_admitted_others_are_served_and_the_end_comes_at_once(frozen: Path, uploads: Path, lora: Path) -> None:
    outcomes: list[Exception] = []

    def send(served: Served, name: str) -> None:
        try:
            served.client().load_lora_weights(lora, name)
        except QuadError as error:
            outcomes.append(error)

    with slow(frozen, uploads) as served:
        senders = [Thread(target=send, args=(served, name)) for name in ("ink", "pen")]
        for sender in senders:
            sender.start()
        while not served.service.admitter.running or served.service.sending < 2:
            time.sleep(0.01)
        process = served.service.admitter._process
        assert process is not None
        assert served.client()("car").images
        assert served.client().health.status == "ok"
        assert b"quad_admissions_running 1" in served.call("GET", "/metrics")[1]
        begin = time.monotonic()
        served.stop()
        for sender in senders:
            sender.join()
        served.thread.join()
        assert time.monotonic() - begin < 5.0
    assert process.returncode is not None
    assert len(outcomes) == 2
    assert not list(uploads.iterdir())


def test_whoever_leaves_ends_its_admission(frozen: Path, uploads: Path, lora: Path) -> None:
    with slow(frozen, uploads) as served:
        connection = served.http._connection()
        connection.request("PUT", "/v1/adapters/ink", lora.read_bytes(), {"Content-Type": "application/octet-stream"})
        while not served.service.admitter.running:
            time.sleep(0.01)
        connection.close()
        while served.service.admitter.running or served.service.sending:
            time.sleep(0.01)
        assert not list(uploads.iterdir())


@pytest.mark.parametrize(
    ("command", "says"), [(SLOW, "admitted within 0.2 s"), (CRASH, r"its admission survives, found one that ends it \(7\)")]
)
def test_one_that_takes_too_long_or_ends_its_process_is_refused(command: Any, says: str, frozen: Path, uploads: Path, lora: Path) -> None:
    with slow(frozen, uploads, command, admission_s=0.2 if command is SLOW else 60.0) as served, pytest.raises(InputError, match=says):
        served.client().load_lora_weights(lora, "ink")
    assert not list(uploads.iterdir())


def test_after_the_end_nothing_is_admitted(frozen: Path, uploads: Path, lora: Path) -> None:
    with slow(frozen, uploads) as served:
        served.service.admitter._is_closed = True
        with pytest.raises(BusyError, match="one that is stopping"):
            served.client().load_lora_weights(lora, "ink")


def test_one_that_needs_more_memory_than_it_may_is_told_so(monkeypatch: pytest.MonkeyPatch, lora: Path, tmp_path: Path) -> None:
    def hungry(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(worker, "admit", hungry)
    monkeypatch.setattr(worker, "_limit", lambda job: None)
    job = AdmissionJob(bundle="b", lora=str(lora), pack=str(tmp_path / "p"), name="ink", engine="ort", max_bytes=1000, max_pack_bytes=1)
    told = worker.answer(job)
    assert isinstance(told, Refused)
    assert "within 1000 bytes of memory, found one that needs more" in told.error


def test_the_process_is_bounded_by_the_system(frozen: Path, tmp_path: Path) -> None:
    """A job whose bound it cannot keep is refused, and the process that refuses it lives to say so."""
    import subprocess

    from quad.serve.admission.admitter import WORKER
    from quad.serve.decoding.fork_server import worker_command

    setup = "import numpy\nworker.admit = lambda request: numpy.ones(2**28, numpy.uint8)\nworker._SLACK_BYTES = 2**24"
    code = (
        "import resource\nfrom quad.serve.admission.messages import AdmissionJob\nfrom pathlib import Path\n"
        f"job = AdmissionJob(bundle={str(frozen)!r}, lora='l', pack='p', name='ink', engine='ort', max_bytes=2**20, max_pack_bytes=1)\n"
        "print(worker.answer(job).error)"
    )
    if not Path("/proc/self/statm").is_file():
        pytest.skip("the system does not tell a process' size")
    command = worker_command(setup=f"{setup}\n{code}\nimport os; sys.stdout.flush(); os._exit(0)", module=WORKER)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ}, timeout=60)
    assert "within 1048576 bytes of memory" in done.stdout, done.stderr
