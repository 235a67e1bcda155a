"""Messages between the server, the fork server and its decoders.

To the fork server, over its own stream, go orders. One with a descriptor, the far end of a new stream, begins a decoder; one without
ends it:

    server       ORDER {number}
    fork server  ENDED {number, returncode, errno} for each that was ended; number READY once, when it has started

About a picture, a decoder and the server speak over that new stream. The next one may follow where this one was decoded:

    server   message {where, n_bytes, max_pixels, cpu_s, niceness}, then the picture's file
    decoder  message {pixels, decoding_bytes}: by the file's header
    server   GO, or no more
    decoder  message {mode, width, height}, then the pixels, a band of rows after the other

The decoder answers with {error, kind} instead, wherever something is wrong. A message is its length in 4 bytes, and JSON.
"""

from __future__ import annotations

import json
import struct
from typing import Any

from quad.serve.worker_stream import framed

ORDER, ENDED, READY = struct.Struct(">I"), struct.Struct(">Iii"), 0
GO = b"\1"
BYTES_PER_PIXEL = {"L": 1, "RGB": 3, "RGBA": 4}  # as they are sent


def message(**facts: Any) -> bytes:
    return framed(json.dumps(facts).encode())
