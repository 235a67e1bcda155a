"""The process of one admission: a LoRA file becomes a pack, or is refused. It ends with its job, or with the server's stream."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path

import msgspec

from quad.admit.admit import admit
from quad.admit.request import AdaptRequest, AdaptResult
from quad.admit.slots import UnfitError
from quad.core.errors import InputError, QuadError, lack_of, mismatch
from quad.core.memory import peak_ram_bytes
from quad.core.slots import UNET
from quad.runtime.bundle import open_bundle
from quad.serve.admission.messages import AdmissionJob, Admitted, Answer, Refused, message
from quad.serve.api import Verdict, error_body
from quad.serve.worker_stream import LENGTH, STREAM, read_exactly, write_all

_NICENESS = 10  # whoever waits for a picture goes first
_SLACK_BYTES = 192 * 2**20  # the interpreter's own, the engine's libraries, and stacks of threads
_STATM = Path("/proc/self/statm")


def main() -> None:
    """Do one job."""
    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    job = msgspec.json.decode(read_exactly(*LENGTH.unpack(read_exactly(LENGTH.size))), type=AdmissionJob)
    threading.Thread(target=_end_with_stream, daemon=True).start()
    write_all(message(answer(job)))


def answer(job: AdmissionJob) -> Answer:
    """The outcome of a job; every refusal names the adapter, not the place where the server keeps its file."""
    try:
        _limit(job)
        return Admitted(verdict(admit(_request(job))))
    except UnfitError as error:
        body = error_body(error)
        return Refused(body.error, body.kind, error.reasons)
    except Exception as error:
        if lack_of("admission", error.__cause__ or error) is not None:
            expected = f"one that is admitted within {job.max_bytes} bytes of memory"
            hint = "admit it with quad adapt, on a larger machine, and send the pack"
            body = error_body(InputError(mismatch(f"adapter {job.name!r}", expected, "one that needs more", hint)))
        elif isinstance(error, QuadError):
            body = error_body(error)
        else:
            raise
        return Refused(_in_their_words(body.error, job), body.kind)


def _request(job: AdmissionJob) -> AdaptRequest:
    options = job.options
    return AdaptRequest(
        Path(job.bundle),
        job.name,
        Path(job.lora),
        output=Path(job.pack),
        task=options.task,
        like=options.like,
        min_energy=options.min_energy,
        allow_unused_keys=options.allow_unused_keys,
        defaults=options.defaults,
        engine=job.engine,
        at_once=1,  # beside pictures that somebody waits for
    )


def _in_their_words(error: str, job: AdmissionJob) -> str:
    """A message of `quad adapt` for whoever sent the file: by the adapter's name, and the options as a query has them."""
    for name in job.options.__struct_fields__:
        error = error.replace(f"--{name.replace('_', '-')}", name)
    return error.replace(job.lora, f"adapter {job.name!r}")


def verdict(admitted: AdaptResult) -> Verdict:
    """The figures that a client is told."""
    manifest, quality = admitted.manifest, admitted.manifest.quality

    def number(value: float | msgspec.UnsetType) -> float | None:
        return None if value is msgspec.UNSET else value

    return Verdict(
        tasks=tuple(sorted(manifest.tasks)),
        rank=manifest.rank,
        bits=manifest.bits,
        size_bytes=manifest.size_bytes,
        applied=admitted.applied,
        clipped=None if quality is msgspec.UNSET else number(quality.lost),
        effect=float(admitted.trial["effect"]),
        golden_effect=float(admitted.trial["golden_effect"]),
        others=dict(admitted.trial["others"]),
        product_db=None if quality is msgspec.UNSET else number(quality.product_db),
        headroom=number(manifest.headroom),
        notes=admitted.notes,
        checked=admitted.checked,
        unchecked=admitted.unchecked,
        seconds=admitted.seconds,
        peak_ram_bytes=peak_ram_bytes(),
    )


def _limit(job: AdmissionJob) -> None:
    """Bound this process' files, and where the system counts it its memory: of graphs one is loaded at a time, with its files."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (job.max_pack_bytes, job.max_pack_bytes))
    if _STATM.is_file():
        bundle = open_bundle(job.bundle, verify=False)
        part = bundle.manifest.components[UNET]
        graph_bytes = sum(bundle.manifest.files[name].size_bytes for name in part.files)
        own_bytes = int(_STATM.read_text(encoding="ascii").split()[5]) * resource.getpagesize()
        most = own_bytes + _SLACK_BYTES + graph_bytes + job.max_bytes
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _end_with_stream() -> None:
    """The server has gone, or does not want the answer any more: nobody does."""
    while os.read(STREAM, 1):
        pass
    os._exit(1)
