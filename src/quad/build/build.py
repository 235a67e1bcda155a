"""The whole way from a model directory to a bundle directory, straight.

open -> lora -> slot -> solve -> equalize -> decoder -> narrow -> calibrate -> score -> round -> unify -> align -> export -> place
-> compile -> emulate -> write
(decoder, narrow, compile and emulate where they are asked for; with a smoke run before the bundle gets its name)
"""

from __future__ import annotations

import time
from dataclasses import replace

from quad.build.align_adapters import align_adapters
from quad.build.calls.float_teacher import FloatTeacher
from quad.build.choose_profile import choose_profile
from quad.build.extra_graphs.tiny_decoder import with_tiny_decoder
from quad.build.fixed_threads import fixed_threads
from quad.build.four_bits.narrow_weights import NarrowWeights, narrow_weights, without_correction
from quad.build.make_bundle import META, WRITTEN, BuildStages, make_bundle, stored_files
from quad.build.open_and_slot import SlottedModel, open_and_slot
from quad.build.request import BuildRequest
from quad.build.result import BuildResult, SlotRoom
from quad.build.resume.cache import build_lock, clear_cache
from quad.compile.backend import Backend
from quad.compile.targets import check_precision, load_target
from quad.core.device import CPU
from quad.core.errors import BackendError, QuadError
from quad.core.memory import freed_memory_reused, release_memory
from quad.core.precision import eight_bit_percent
from quad.core.processes import is_main
from quad.core.progress import Progress, StageClock, silent
from quad.core.storage.directories import require_replaceable
from quad.model.device import HERE, open_device
from quad.quantize.observe.short_floats import bf16_offered, check_statistics_type
from quad.quantize.observe.side_by_side import one_lane
from quad.quantize.processes.dealt import shared

__all__ = ["STAGES", "BuildRequest", "BuildResult", "build"]

STAGES = (
    "open", "lora", "slot", "solve", "equalize", "decoder", "narrow", "calibrate", "score", "round", "unify",
    "align", "export", "place", "compile", "emulate", "write",
)  # fmt: skip


def build(request: BuildRequest, progress: Progress = silent) -> BuildResult:
    """Build one bundle.

    Args:
        progress: called with each stage as it begins, and the share of stages done.

    Raises:
        InputError: model, adapters or samples are wrong. UsageError: an option is. UnsupportedError: a precision or layer is not for this
        target. CompatibilityError: adapters do not fit. BackendError: the disk is full, or the graph does not run as the network does.
    """
    start = time.perf_counter()
    request = replace(request, precision=request.resolved_precision)
    check_precision(load_target(request.target), request.resolved_precision)
    request.check()
    backend = request.backend
    backend.require(request.model)
    for directory in request.directories:
        require_replaceable(directory.path, directory.marker, directory.option)
    device = open_device(request.device)
    check_statistics_type(request.statistics, offered=bf16_offered(device))
    request = replace(request.with_files_defaults(), device=str(device))
    clock = StageClock(STAGES, _releasing(progress if is_main() else silent))
    with build_lock(request), fixed_threads(request.threads), one_lane(request.device != CPU), freed_memory_reused():
        try:
            return _build(request, backend, clock, start)
        except QuadError as error:
            # After a full disk, or a kill, the build goes on; other input is another run. One that ended while it was read, at a mistyped
            # name for instance, has touched no piece.
            if not isinstance(error, BackendError) and "slot" in clock.seconds:
                clear_cache(request)
            raise


def _build(request: BuildRequest, backend: Backend, clock: StageClock, start: float) -> BuildResult:
    """All stages, one after the other: each takes what the earlier ones gave."""
    model = open_and_slot(request, clock)
    if request.tiny_decoder:
        with clock("decoder"):
            model = with_tiny_decoder(model, clock.within("decoder"))
    teacher = FloatTeacher.of(model, trains=bool(request.distill_steps))  # before biases are corrected
    narrowed = NarrowWeights()
    if model.four_bit_layers:
        with clock("narrow"):
            teacher.let_go()  # so each float weight leaves memory when its integers come
            narrowed = narrow_weights(request, model, clock.within("narrow"))
    profile = choose_profile(request, model, teacher, clock, given=narrowed, needs_calls=backend.needs_calls)
    with clock("align"):
        aligned = align_adapters(request, model, teacher, profile, clock.within("align"))
    stages = BuildStages(
        model=model,
        profile=profile,
        adapters=aligned.packed,
        stored=stored_files(request, model, teacher),
        correction=narrowed.tensors(profile.slots, profile.profile),
    )
    del teacher  # it holds the weights as they were before they were rounded
    without_correction(model.networks)
    for network in model.networks.values():
        network.to(HERE)  # graphs are exported there
    for module in (model.base.text_encoder, model.base.vae):
        module.to(META)  # the networks have their weights
    bundle = shared(lambda: make_bundle(request, backend, stages, clock), WRITTEN)
    clear_cache(request)
    clock.done()
    return BuildResult(
        bundle=request.output,
        manifest=bundle.manifest,
        seconds=time.perf_counter() - start,
        profile=profile.report,
        slots=request.slots,
        room=SlotRoom.of(profile.slots, model.adapters, request.slot_room if request.max_rank is None else None),
        stages=clock.seconds,
        stage_cpu=clock.cpu,
        stage_peaks=clock.peak_bytes,
        smoke=bundle.smoke,
        placement=bundle.placement,
        emulation=bundle.emulation,
        alignment=aligned.alignments,
        resumed=tuple(model.cache.resumed),
        notes=(*model.base.notes, *_range_notes(model), *_precision_notes(request), *bundle.notes),
        lora={adapter.name: adapter.to_json() for adapter in model.adapters},
    )


def _releasing(progress: Progress) -> Progress:
    """The same; before each part begins, memory that earlier ones have freed goes back to the system: their tensors had other sizes."""

    def tell(part: str, share: float) -> None:
        release_memory()
        progress(part, share)

    return tell


def _range_notes(model: SlottedModel) -> tuple[str, ...]:
    """A line where the model's own code would leave half precision for the autoencoder."""
    if not model.base.vae_overflows:
        return ()
    return ("vae: its activations leave half precision's range (force_upcast); here they are float32, bfloat16 or integers, never half",)


def _precision_notes(request: BuildRequest) -> tuple[str, ...]:
    """A line on 16-bit activations where the target is a CPU: it has integer kernels for 8 bits alone."""
    target = load_target(request.target)
    precision = request.resolved_precision
    if eight_bit_percent(precision) == 0.0 and target.integer and not target.integers_only:
        fast = f"{target.default_precision} is about 6 times as fast"
        return (f"{precision} on {target.name} is for checking a chip's numbers, computed in float; {fast}",)
    return ()
