"""Pictures are decoded in processes that can be ended: what takes too long or too much is one client's trouble."""

from __future__ import annotations

import base64
import io
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from quad.runtime.conditioning.picture import open_picture, to_rgb
from quad.serve.decoding import decoder as decoding
from quad.serve.decoding.fork_server import worker_command
from quad.serve.limits import Limits
from tests.serve import stand_in
from tests.serve.conftest import Serve, Served
from tests.serve.stand_in import png

NOISE = np.random.default_rng(0).integers(0, 256, (40, 30, 4)).astype(np.uint8)


def _served(serve: Serve, **limits: Any) -> Served:
    return serve(limits=Limits(**limits), decoder_command=stand_in.COMMAND)


def _ask(served: Served, width: int, **more: Any) -> tuple[int, Any]:
    return served.call("POST", "/v1/requests", {"image": png(width), **more})


def _processes() -> list[int]:
    """The fork server and its decoders, by the system's list."""
    lines = (line.split() for line in subprocess.check_output(["ps", "-eo", "pid,ppid,args"], text=True).splitlines()[1:])
    all_of_them = [(int(words[0]), int(words[1])) for words in lines if "quad.serve.decoding" in " ".join(words)]
    ours = [pid for pid, parent in all_of_them if parent == os.getpid()]
    return [*ours, *(pid for pid, parent in all_of_them if parent in ours)]


def test_others_are_answered_while_pictures_of_several_clients_take_long_and_those_are_refused(serve: Serve) -> None:
    served = _served(serve, decode_s=1.2)
    with ThreadPoolExecutor(3) as pool:
        hostile = [pool.submit(_ask, served, stand_in.SLEEPS, client=f"app {number}") for number in range(3)]
        while not all(answer.done() for answer in hostile):
            assert served.call("GET", "/health")[0] == 200
            assert served.call("GET", "/v1/adapters")[0] == 200
            assert _ask(served, 16)[0] in (202, 503)  # 503: the queue of 32 is full
    for answer in hostile:
        status, body = answer.result()
        assert (status, body["kind"]) == (400, "InputError")
        assert "image: expected a picture that is decoded within 1.2 s, found one that takes longer" in body["error"]
    while len(_processes()) > 2:  # those that slept are ended
        pass


def test_who_sends_what_takes_long_waits_in_a_line_of_its_own(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "QUICK_S", 0.2)
    served = _served(serve, decode_s=1.0, max_queue=2)
    assert _ask(served, stand_in.SLEEPS)[0] == 400
    slow = served.service.decoder._slow
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(_ask, served, stand_in.SLEEPS)
        while not slow.jobs:
            pass
        status, body = _ask(served, 16)
        assert (status, body["kind"]) == (503, "BusyError")
        assert "pictures: expected fewer than 1 that take long" in body["error"]
        assert waiting.result()[0] == 400
    assert _ask(served, 16)[0] == 202


@pytest.mark.parametrize(
    ("width", "status", "kind", "says"),
    [
        (stand_in.DIES, 400, "InputError", "image: expected a picture that a decoder survives, found one that ends it (7)"),
        (stand_in.IS_KILLED, 503, "BackendError", "image: expected enough memory, found too little"),
        (stand_in.HAS_NO_MEMORY, 503, "BackendError", "image: expected enough memory, found too little"),
        (stand_in.TAKES_MEMORY, 503, "BackendError", "image: expected enough memory, found too little"),
    ],
)
def test_a_decoder_that_ends_or_lacks_memory_is_one_line_and_the_next_picture_is_read(
    serve: Serve, width: int, status: int, kind: str, says: str
) -> None:
    served = _served(serve)
    answer = _ask(served, width)
    assert (answer[0], answer[1]["kind"]) == (status, kind)
    assert says in answer[1]["error"]
    assert _ask(served, 16)[0] == 202
    assert served.service.budget.held_bytes == 16 * 16


def test_a_client_that_leaves_takes_its_picture_along(serve: Serve) -> None:
    served = _served(serve, decode_s=600.0)
    connection = served.http._connection()
    connection.request("POST", "/v1/requests", f'{{"image": "{png(stand_in.SLEEPS)}"}}', {"Content-Type": "application/json"})
    while not served.service.decoder._quick.jobs:
        pass
    connection.close()
    while served.service.decoder._quick.jobs or served.service.decoder._slow.jobs:
        pass
    assert _ask(served, 16)[0] == 202


def test_no_process_is_kept_for_nothing(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "IDLE_S", 0.0)
    served = _served(serve)
    assert served.call("POST", "/v1/requests", {"prompt": "x"})[0] == 202
    assert not _processes()
    assert _ask(served, 16)[0] == 202
    while _processes():
        pass


def test_a_server_stops_while_a_picture_takes_long(serve: Serve) -> None:
    served = _served(serve, decode_s=600.0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(_ask, served, stand_in.SLEEPS)
        while not served.service.decoder._quick.jobs:
            pass
        served.stop()
        status, body = waiting.result()
    assert (status, body["kind"]) == (503, "BusyError")
    assert "one that is stopping" in body["error"]


def test_a_decoder_takes_little_memory() -> None:
    heavy = ("numpy", "onnxruntime", "msgspec", "starlette", "asyncio", "tokenizers")
    setup = f"import sys; assert not [name for name in {heavy} if name in sys.modules]; worker.main = lambda: None"
    subprocess.run(worker_command(setup), check=True, stdin=subprocess.DEVNULL)


def _modes() -> dict[str, Image.Image]:
    base = Image.fromarray(NOISE)
    pictures = {mode: base.convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")}
    pictures["P, transparent"] = base.convert("RGB").quantize()
    pictures["P, transparent"].info["transparency"] = 3
    pictures["16 bits"] = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (40, 30)).astype(np.uint16))
    pictures["16 bits, dark"] = Image.fromarray(np.random.default_rng(0).integers(0, 200, (40, 30)).astype(np.uint16))
    return pictures


@pytest.mark.parametrize(
    ("kind", "file_format"), [*((mode, "PNG") for mode in _modes()), ("RGB", "JPEG"), ("L", "JPEG"), ("RGB", "WEBP"), ("RGBA", "WEBP")]
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_what_a_decoder_gives_is_what_the_pipeline_reads(
    serve: Serve, tmp_path: Path, kind: str, file_format: str, orientation: int
) -> None:
    exif, data = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    _modes()[kind].save(data, file_format, exif=exif)
    (tmp_path / "file").write_bytes(data.getvalue())
    served = serve()
    served.ask(image=base64.b64encode(data.getvalue()).decode())
    picture = served.tickets[0].request.image
    assert picture.mode in ("L", "RGB", "RGBA")
    for ground in (0, 255):
        ours, theirs = to_rgb(picture, ground), to_rgb(open_picture(tmp_path / "file"), ground)
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1] == theirs[1]
