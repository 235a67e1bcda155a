"""Operations on adapters that clients send: packs, and LoRA files, which are admitted first."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from quad.core.errors import BusyError, RefusedError, UnsupportedError, UsageError, mismatch
from quad.core.manifest import AdapterName
from quad.core.storage.files import writing_to
from quad.core.storage.header import Malformed
from quad.core.storage.pack import MANIFEST_KEY, pack_manifest
from quad.core.storage.stable_file import StableFile
from quad.core.storage.tensor_file import open_header
from quad.runtime.adapter_defaults import check_defaults
from quad.serve.admission.messages import AdmissionJob
from quad.serve.admission.options import AdmissionOptions
from quad.serve.api import PACK, Uploaded, Verdict
from quad.serve.connections.body import chunks, require_type
from quad.serve.endpoint import upload_name
from quad.serve.error_response import HttpError, json_response
from quad.serve.operations.adapters import ADAPTER, require_known
from quad.serve.operations.operation import Operation, query_of, read_query
from quad.serve.operations.stream import until_gone
from quad.serve.service import Service

_LOG = logging.getLogger(__name__)
_LONGEST_HEADER = 16 * 2**20  # as of a pack


async def upload(service: Service, http: HttpRequest) -> Response:
    """Take a pack, or admit a LoRA file (safetensors) and take the pack that it becomes, under a new name or one that came the same way.

    The query says how a LoRA is admitted, as the options of `quad adapt` do.
    """
    folder, name = require_uploads(service), http.path_params["name"]
    service.require_running()
    require_type(http, PACK)
    options = _options(service, http, name)
    file, pack = folder / upload_name(), folder / upload_name()
    with _sending(service, name):
        try:
            with writing_to(folder), file.open("xb") as stream:
                async for chunk in chunks(http, service.limits.max_upload_bytes, service.limits.body_timeout_s):
                    stream.write(chunk)
            if await service.in_thread(partial(_is_lora, file)):
                body = Uploaded(name, await _admit(service, http, name, (file, pack), options))
            elif options != AdmissionOptions():
                expected = "a LoRA file, which is admitted by them"
                raise HttpError(400, UsageError(mismatch("query", expected, "a pack, which says how it is run", "leave the query out")))
            else:
                file.replace(pack)
                body = Uploaded(name)
            await _take(service, name, pack)
        except BaseException:
            pack.unlink(missing_ok=True)
            raise
        finally:
            file.unlink(missing_ok=True)
    return json_response(body)


def _is_lora(file: Path) -> bool:
    """Is this another safetensors file than a pack; what is none is for the pack's reader to refuse."""
    try:
        return MANIFEST_KEY not in StableFile.of(file).header(_LONGEST_HEADER).metadata
    except Malformed:
        return False


def _options(service: Service, http: HttpRequest, name: str) -> AdmissionOptions:
    """How a LoRA is to be admitted, told before anything is read.

    Raises:
        HttpError: 400, the query is wrong; 409, the task is there already. UsageError: a sampler that there is not.
    """
    options = read_query(http, AdmissionOptions)
    check_defaults("query", options.defaults)
    _require_new_task(service, "task", options.task, name)
    return options


def _require_new_task(service: Service, where: str, task: str | None, name: str) -> None:
    """No client changes a task that others rely on: one of another adapter, or of none."""
    if task is not None and (spec := service.pipe.tasks.get(task)) is not None and spec.adapter != name:
        raise HttpError(409, UsageError(mismatch(where, "a new one", f"{task!r}, which is a task", "choose another name")))


async def _admit(service: Service, http: HttpRequest, name: str, files: tuple[Path, Path], options: AdmissionOptions) -> Verdict:
    """Make the pack of a LoRA file, unless the client leaves. Raises: as `Admitter.admit`; HttpError, 409: a task has the name."""
    _require_new_task(service, "name", name, name)
    limits, verdicts = service.limits, []
    job = AdmissionJob(
        bundle=str(service.pipe.bundle.root.absolute()),
        lora=str(files[0].absolute()),
        pack=str(files[1].absolute()),
        name=name,
        engine=service.pipe.engine,
        options=options,
        max_bytes=limits.max_admission_bytes,
        max_pack_bytes=limits.max_upload_bytes,
    )

    async def work() -> None:
        verdicts.append(await service.admitter.admit(job))

    if await until_gone(http.receive, work()):
        raise ClientDisconnect
    return verdicts[0]


async def _take(service: Service, name: str, pack: Path) -> None:
    """Register a pack that has come, in place of one that came before."""
    async with service.changing:
        _require_free(service, name)
        await service.in_thread(partial(_register, service, pack, name))
        old, service.uploaded[name] = service.uploaded.get(name), pack
        _LOG.info("adapter %s: uploaded", name)
        service.keep_previous(name, old)


async def remove(service: Service, http: HttpRequest) -> Response:
    """Forget an adapter that a client sent."""
    require_uploads(service)
    name = require_known(service, http)
    async with service.changing:
        if name not in service.uploaded:
            raise HttpError(409, UsageError(mismatch("adapter", "one that was uploaded", repr(name), "use quad install for the others")))
        await service.in_thread(partial(service.pipe.switch.unregister, name))
        service.forget_upload(name)
        _LOG.info("adapter %s: removed by a client", name)
    return Response(status_code=204)


def _register(service: Service, path: Path, name: str) -> None:
    """Register an uploaded pack, which may bring new tasks, but changes none that others rely on.

    Raises:
        HttpError: 409, it names such a task. RefusedError: it is no whole pack, or made for another bundle.
    """
    other_tasks = {task for task, spec in service.pipe.tasks.items() if spec.adapter != name}
    try:
        if shared := sorted(other_tasks & pack_manifest(str(path), open_header(path).metadata).tasks.keys()):
            conflict = f"{shared[0]!r}, which is there already"
            raise HttpError(409, UsageError(mismatch("pack", "tasks of its own", conflict, "pack it without that task")))
        service.scheduler.register(path, name, mapped=True)
    except RefusedError as error:  # where it lies here is no word for who sent it
        raise type(error)(str(error).replace(str(path), f"pack {name!r}")) from error


def require_uploads(service: Service) -> Path:
    """Where uploads lie. Raises: HttpError, 403: none are taken."""
    if service.uploads is None:
        raise HttpError(
            403, UnsupportedError(mismatch("server", "one that takes uploads", "one that does not", "start it with --allow-uploads"))
        )
    return service.uploads


def _require_free(service: Service, name: str) -> None:
    """Nobody sends another adapter under the name of one that others rely on."""
    try:
        msgspec.convert(name, AdapterName)
    except msgspec.ValidationError:
        next_step = "choose another name"
        raise HttpError(400, UsageError(mismatch("name", "letters, digits, '.', '_' and '-'", repr(name), next_step))) from None
    if name in service.uploaded:
        return
    if name in service.pipe.adapters:
        raise HttpError(409, UsageError(mismatch("name", "a new one, or one that was uploaded", repr(name), "choose another name")))


@contextmanager
def _sending(service: Service, name: str) -> Iterator[None]:
    """A place on the disk for one pack more; one that replaces another may be there beside it."""
    _require_free(service, name)
    most, count = service.limits.max_uploads, len(service.uploaded)
    if count >= most and name not in service.uploaded:
        raise HttpError(409, UsageError(mismatch("uploads", f"fewer than {most}", str(most), "remove one first")))
    if count + service.sending >= most + (name in service.uploaded):
        raise HttpError(503, BusyError(mismatch("uploads", f"at most {most} with those on their way", "more", "ask again later")))
    service.sending += 1
    service.spare_places(service.sending)
    try:
        yield
    finally:
        service.sending -= 1


OPERATIONS = (
    Operation(
        method="PUT",
        path=ADAPTER,
        handle=upload,
        says="Take a pack, or admit a LoRA file.",
        status=200,
        gives=Uploaded,
        reads=PACK,
        query=query_of(AdmissionOptions),
        error_statuses=(400, 403, 408, 409, 413, 415, 422, 503),
    ),
    Operation(
        method="DELETE",
        path=ADAPTER,
        handle=remove,
        says="Forget an uploaded adapter.",
        status=204,
        gives=None,
        error_statuses=(403, 404, 409),
    ),
)
