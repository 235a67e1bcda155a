"""The operation that tells what the server has open: the bundle, for people and for pages."""

from __future__ import annotations

from functools import partial

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from quad.core.errors import UsageError
from quad.core.memory import peak_ram_bytes
from quad.core.picture_size import PictureSize
from quad.core.slots import NORMALISED, SEARCHED
from quad.runtime.samplers.names import SAMPLER_NAMES
from quad.serve.error_response import json_response
from quad.serve.operations.operation import Operation
from quad.serve.service import Service
from quad.serve.studio.heat_maps import HeatMap, distances


class BundleCard(msgspec.Struct, frozen=True, kw_only=True):
    """The bundle that a server has open, how it runs it, and which calls it takes.

    Args:
        size_bytes: of all its files.
        profile: how its ranges came to be, and the adapter whose ranges rule, where one's do.
        profiles: how many there are; each is a graph of its own.
        slot_mode: `normalised` or `searched`.
        merged: adapters in its weights -> their weight.
        samplers: names that a request's sampler may have.
        heat_maps: adapters by adapters.
        previews: requests may ask for them.
        uploads: packs and LoRA files may be sent.
        reference: full precision's pictures may be asked for.
        report: one can be fetched.
        peak_ram_bytes: of the server's process, so far.
    """

    name: str
    target: str
    precision: str
    engine: str
    float_type: str
    sizes: tuple[PictureSize, ...]
    size_bytes: int
    quad_version: str
    profile: str
    anchor: str | None
    profiles: int
    slots: int
    slot_mode: str
    merged: dict[str, float]
    samplers: tuple[str, ...]
    heat_maps: tuple[HeatMap, ...]
    previews: bool
    uploads: bool
    reference: bool
    report: bool
    peak_ram_bytes: int


async def bundle_card(service: Service, http: HttpRequest) -> Response:
    """The bundle, and what the server does with it."""
    return json_response(await service.in_thread(partial(_card, service)))


def _card(service: Service) -> BundleCard:
    pipe = service.pipe
    bundle, manifest = pipe.bundle, pipe.bundle.manifest
    profile = bundle.profile
    return BundleCard(
        name=manifest.name,
        target=manifest.target,
        precision=manifest.precision,
        engine=pipe.engine,
        float_type=pipe.float_type,
        sizes=manifest.picture_sizes,
        size_bytes=sum(entry.size_bytes for entry in manifest.files.values()),
        quad_version=manifest.quad_version,
        profile=profile.mode,
        anchor=profile.anchor,
        profiles=profile.group_count,
        slots=len(bundle.slots.slots),
        slot_mode=NORMALISED if bundle.slots.normalised else SEARCHED,
        merged={adapter.name: adapter.weight for adapter in manifest.merged or ()},
        samplers=SAMPLER_NAMES,
        heat_maps=(*service.heat_maps, *_distances(service)),
        previews=manifest.preview is not msgspec.UNSET,
        uploads=service.uploads is not None,
        reference=service.reference is not None,
        report=service.report is not None,
        peak_ram_bytes=peak_ram_bytes(),
    )


def _distances(service: Service) -> tuple[HeatMap, ...]:
    golden = {}
    for name in service.pipe.adapters:
        try:
            output = service.pipe.adapter_manifest(name).golden
        except UsageError:  # it has gone meanwhile
            continue
        if output is not msgspec.UNSET:
            golden[name] = output
    table = distances(golden)
    return () if table is None else (table,)


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/bundle",
        handle=bundle_card,
        says="The bundle, and what the server does with it.",
        status=200,
        gives=BundleCard,
    ),
)
