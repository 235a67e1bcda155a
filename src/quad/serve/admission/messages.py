"""The two messages between the server and an admission's process, over one stream.

    server     message of an AdmissionJob
    admission  message of an Admitted, or of a Refused

A message is its length in 4 bytes, and JSON. Where the stream ends, the process ends.
"""

from __future__ import annotations

import msgspec

from quad.serve.admission.options import AdmissionOptions
from quad.serve.api import Verdict
from quad.serve.worker_stream import framed

LONGEST_MESSAGE = 2**24


class AdmissionJob(msgspec.Struct, frozen=True, kw_only=True):
    """One LoRA to admit.

    Args:
        bundle, lora, pack: paths; the last is written.
        name: what the adapter will be called.
        engine: that runs the bundle's U-Net.
        options: as its sender chose them.
        max_bytes: of memory, beside the process itself and the graph's files.
        max_pack_bytes: of a file that it writes.
    """

    bundle: str
    lora: str
    pack: str
    name: str
    engine: str
    options: AdmissionOptions = AdmissionOptions()
    max_bytes: int
    max_pack_bytes: int


class Admitted(msgspec.Struct, frozen=True, tag=True):
    """The pack is written."""

    verdict: Verdict


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Nothing is written.

    Args:
        error, kind: see `quad.serve.api.ErrorBody`.
        reasons: slot or activation -> why it does not take the adapter.
    """

    error: str
    kind: str
    reasons: dict[str, str] = {}


Answer = Admitted | Refused


def message(body: msgspec.Struct) -> bytes:
    return framed(msgspec.json.encode(body))
