"""Decoders for tests, in place of pictures that would take a real one minutes: a width says what becomes of a picture."""

from __future__ import annotations

import base64
import io

from PIL import Image

from quad.serve.decoding.fork_server import worker_command

SLEEPS, DIES, IS_KILLED, HAS_NO_MEMORY, TAKES_MEMORY = 21, 22, 23, 24, 25  # pixels wide
_SETUP = f"""
import os, signal, time
decode = worker.decode
def stand_in(picture):
    match picture.width:
        case {SLEEPS}: time.sleep(600)
        case {DIES}: os._exit(7)
        case {IS_KILLED}: os.kill(os.getpid(), signal.SIGKILL)
        case {HAS_NO_MEMORY}: raise MemoryError
        case {TAKES_MEMORY}: bytearray(2**35)
    return decode(picture)
worker.decode = stand_in
"""
COMMAND = worker_command(_SETUP)
# `quad serve` with that decoder, as a process of its own.
PROGRAM = (
    "-c",
    "from tests.serve.stand_in import COMMAND\nfrom quad.serve.decoding import decoder\n"
    "decoder.worker_command = lambda: COMMAND\nfrom quad.cli.main import main\nmain()",
)


def png(width: int, height: int = 16) -> str:
    """A picture of that size, as a call brings it."""
    data = io.BytesIO()
    Image.new("L", (width, height), 200).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()
