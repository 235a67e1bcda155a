"""The first stages of a build: model and adapters from disk, networks with Sites and slots, samplers solved, channels balanced.

open, lora   the model and the adapters, read
slot         one network with slots takes the place of the base's U-Net; skip concats get two Sites, in that network itself
solve        the base's tasks get their solved sampler tables, in a copy of the base
equalize     gains are folded into the network's weights themselves, and multiplied into copies of the adapters
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import msgspec
import torch
from torch import nn

from quad.build.eight_bit_sites import MixedPrecision
from quad.build.embeddings import checked_words
from quad.build.four_bits.choose_layers import choose_layers
from quad.build.olss_tables import solve_tasks
from quad.build.request import BuildRequest
from quad.build.resume import stages as resumable
from quad.build.resume.cache import BuildCache, cache_dir, identity_of
from quad.build.smoke import float_references
from quad.compile.export import GraphSpec
from quad.compile.graph_specs import component_specs
from quad.compile.targets import load_target
from quad.core.component_call import ComponentCall
from quad.core.errors import UnsupportedError, UsageError, mismatch
from quad.core.manifest import LatentPreview, TaskSpec
from quad.core.picture_size import PictureSize
from quad.core.precision import eight_bit_percent, has_four_bits
from quad.core.progress import StageClock
from quad.core.slots import UNET, SlotTable
from quad.lora.file import require_lora
from quad.lora.read import FloatAdapter
from quad.model.adapters import read_adapter
from quad.model.base.open import Base, open_model
from quad.model.base.text.clip_skip import with_clip_skip
from quad.model.base.text.prompt_chunks import with_prompt_chunks
from quad.model.slots.network import slot_networks, slotted_as
from quad.model.slots.table import corrected_table
from quad.quantize.correct.layer_choice import FourBitLayers
from quad.quantize.observe.calibrate import CalibrationSample, component_networks
from quad.quantize.observe.input_grams import Key
from quad.quantize.observe.latent_preview import fit_preview
from quad.quantize.observe.probes import ProbeOptions, record_probes
from quad.quantize.observe.short_floats import bf16_offered, choose_statistics_type
from quad.quantize.profile.divergence import MIN_VALUES

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SlottedModel:
    """The model, its networks with Sites, and its slots as they will be in the graph.

    Args:
        mixed_precision: the U-Net, and the adapters as they fit it.
        statistics_type: `f32` or `bf16`, what the networks compute in while they are observed.
        references: calls of the float networks as they were slotted, with their outputs.
        calibration_sizes: of the pictures that ranges are measured on.
        four_bit_layers: component and path of those whose weights get 4 bits.
    """

    base: Base
    mixed_precision: MixedPrecision
    samples: tuple[CalibrationSample, ...]
    networks: Mapping[str, nn.Module]
    table: SlotTable
    specs: Mapping[str, GraphSpec]
    references: tuple[ComponentCall, ...]
    cache: BuildCache
    statistics_type: str
    calibration_sizes: tuple[PictureSize, ...]
    four_bit_layers: frozenset[Key] = frozenset()

    @property
    def adapters(self) -> tuple[FloatAdapter, ...]:
        """As they fit the networks."""
        return self.mixed_precision.adapters

    @property
    def measured(self) -> Base:
        """The base with pictures of the size that probes are taken at, the first of those that ranges are measured on."""
        return self.base.at(self.calibration_sizes[0])

    @property
    def measured_at_each(self) -> tuple[Base, ...]:
        """The base with pictures of each size that ranges are measured on."""
        return tuple(self.base.at(size) for size in self.calibration_sizes)


@dataclass(frozen=True, kw_only=True)
class _Sources:
    """Model, adapters and samples as they were read, of the tasks that are built."""

    base: Base
    adapters: tuple[FloatAdapter, ...]
    samples: tuple[CalibrationSample, ...]
    cache: BuildCache


def open_and_slot(request: BuildRequest, clock: StageClock) -> SlottedModel:
    """The stages open, lora, slot, solve and equalize.

    Raises:
        InputError, UnsupportedError, CompatibilityError: as `quad.build.build.build`.
    """
    with clock("open"):
        for path in request.adapters.values():
            require_lora(path)
        base = _base(request)
        request = replace(request, statistics=_statistics_type(request, base))
    with clock("lora"):
        adapters = _read_adapters(request, base)
        for module in (base.unet, base.text_encoder, base.vae):
            module.to(request.device)  # before anything shares their weights
    sources = _of_built_tasks(request, base, adapters)
    del base  # it holds weights that equalization folds away
    with clock("slot"):
        model = _slot(request, sources)
    del sources
    with clock("solve"):
        model = _solve(model)
    with clock("equalize"):
        return _equalize(model)


def _base(request: BuildRequest) -> Base:
    """The model as it is built for the target."""
    base = with_prompt_chunks(with_clip_skip(open_model(request.model, request.base_options), request.clip_skip), request.prompt_chunks)
    if request.reuse and not hasattr(base.unet, "up_blocks"):
        raise UnsupportedError(mismatch("--reuse", "a U-Net with up blocks", type(base.unet).__name__, "build without it"))
    if load_target(request.target).text_vectors:
        return base
    return replace(base, text=msgspec.structs.replace(base.text, first_vector_id=msgspec.UNSET))


def _statistics_type(request: BuildRequest, base: Base) -> str:
    """The type that the networks are observed in, known before pieces of an earlier run are looked for."""
    weights = sum(parameter.numel() for parameter in base.unet.parameters())
    return choose_statistics_type(request.statistics, offered=bf16_offered(torch.device(request.device)), weights=weights)


def _read_adapters(request: BuildRequest, base: Base) -> tuple[FloatAdapter, ...]:
    unused = request.allow_unused_keys
    adapters = tuple(
        read_adapter(name, path, base.unet, unused, text_encoder=base.text_encoder, limits=request.rank_limits(name)).for_base(
            base.schedule.prediction
        )
        for name, path in request.adapters.items()
    )
    adapters = checked_words(adapters, base)
    for adapter in adapters:
        _log.info("adapter %s: rank %d, %s", adapter.name, adapter.rank, "; ".join(adapter.notes) or "as it is")
    return adapters


def _of_built_tasks(request: BuildRequest, base: Base, adapters: tuple[FloatAdapter, ...]) -> _Sources:
    """Tasks and samples of adapters that are not built are left out."""
    names = {None, *request.adapters}
    base = replace(base, tasks={name: spec for name, spec in base.tasks.items() if spec.adapter in names})
    samples = tuple(sample for sample in request.samples if sample.task in base.tasks and (sample.adapter or None) in names)
    if request.lambda_:
        require_truths(base, adapters, samples)
    cache = BuildCache(cache_dir(request), identity_of(request, base, adapters, samples))
    return _Sources(base=base, adapters=adapters, samples=samples, cache=cache)


def _slot(request: BuildRequest, sources: _Sources) -> SlottedModel:
    """Sites and slots; the base's U-Net becomes the slotted one's, so that nobody holds the weights which equalization folds away."""
    slotted = slot_networks(
        sources.base.unet, sources.base.text_encoder, sources.adapters, request.max_rank, request.slot_room, request.slots
    )
    chosen = FourBitLayers()
    if has_four_bits(request.resolved_precision):
        floats = component_networks(replace(sources.base, unet=slotted.unet.unet), slotted.unet, slotted.text_encoder)
        measured = sources.base.at((request.measured_sizes or sources.base.sizes)[0])
        choice = partial(choose_layers, request, measured, floats, slotted.table, sources.adapters, sources.samples)
        chosen = sources.cache.value("four_bits", choice, FourBitLayers)
        if chosen.corrected:
            paths = {path for _, path in chosen.corrected}
            table = corrected_table(slotted.table, UNET, sources.base.unet, paths, request.resolved_correction_rank)
            slotted = slotted_as(sources.base.unet, sources.base.text_encoder, table)
    base, table = replace(sources.base, unet=slotted.unet.unet), slotted.table
    percent = eight_bit_percent(request.resolved_precision) or 0.0
    mixed_precision = MixedPrecision(
        network=slotted.unet, table=table, adapters=sources.adapters, quality=request.quality, percent=percent,
        products=load_target(request.target).products,
    )  # fmt: skip
    mixed_precision.split()
    networks = component_networks(base, slotted.unet, slotted.text_encoder)
    specs = component_specs(base, networks, table)
    # Taken here because bias correction will change the networks.
    references = resumable.references(sources.cache, lambda: float_references(networks, specs, table, sources.adapters))
    return SlottedModel(
        base=base,
        mixed_precision=mixed_precision,
        samples=sources.samples,
        networks=networks,
        table=table,
        specs=specs,
        references=references,
        cache=sources.cache,
        statistics_type=request.statistics,
        calibration_sizes=request.measured_sizes or base.sizes,
        four_bit_layers=chosen.narrow,
    )


def _solve(model: SlottedModel) -> SlottedModel:
    """OLSS tables for the tasks that lack one, and the colours of a latent."""
    tasks = model.cache.value(
        "tasks", lambda: solve_tasks(model.base, model.networks, model.table, model.adapters, model.samples).tasks, dict[str, TaskSpec]
    )
    preview = model.cache.value(
        "preview", lambda: fit_preview(model.measured, model.networks, model.table, model.samples), LatentPreview | None
    )
    return replace(model, base=replace(model.base, tasks=tasks, preview=preview))


def _equalize(model: SlottedModel) -> SlottedModel:
    """Gains in the network itself and in copies of the adapters; where something is measured, with the calls it is measured on."""
    mixed_precision = model.mixed_precision
    if mixed_precision.needs_probes:
        options = ProbeOptions(min_values=MIN_VALUES)  # adapters are scored on them too
        probes, channels = resumable.probes_and_channels(
            model.cache,
            "probes.mixed",
            mixed_precision.network,
            lambda: record_probes(model.measured, model.networks, model.table, model.adapters, model.samples, options),
        )
        mixed_precision = replace(mixed_precision, probes=probes, channels=channels)
    return replace(model, mixed_precision=mixed_precision.equalized())


def require_truths(base: Base, adapters: Sequence[FloatAdapter], samples: Sequence[CalibrationSample]) -> None:
    """Refuse a lambda where an adapter has no sample with its true picture.

    Raises:
        UsageError: names the adapter.
    """
    with_truth = {sample.adapter or base.tasks[sample.task].adapter for sample in samples if sample.truth is not None}
    for adapter in adapters:
        if adapter.name not in with_truth:
            hint = "leave it out: the teacher's runs are enough"
            raise UsageError(mismatch("--lambda", f"samples of adapter {adapter.name!r} with their true pictures", "none", hint))
