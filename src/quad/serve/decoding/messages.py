"""Messages between the server and a decoder's process, over one stream.

    decoder  message {ready}
    server   message {where, n_bytes, max_pixels, cpu_s}, then the picture's file
    decoder  message {pixels, decoding_bytes}: by the file's header
    server   GO, or STAY where it has no room: the next job follows
    decoder  message {mode, width, height}, then the pixels, a band of rows after the other

The decoder answers with {error, kind} instead, wherever something is wrong. A message is its length in 4 bytes, and JSON.
"""

from __future__ import annotations

import json
import struct
from typing import Any

LENGTH = struct.Struct(">I")
GO, STAY = b"\1", b"\0"
BYTES_PER_PIXEL = {"L": 1, "RGB": 3, "RGBA": 4}  # as they are sent


def message(**facts: Any) -> bytes:
    data = json.dumps(facts).encode()
    return LENGTH.pack(len(data)) + data
