"""The first stages of a build: model and adapters from disk, networks with Sites and slots, samplers solved, channels balanced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from quad.build import resumable_stages as kept_pieces
from quad.build.align_adapters import require_truths
from quad.build.eight_bit_sites import Mixed
from quad.build.olss_tables import solve_tasks
from quad.build.request import BuildRequest
from quad.build.resume import Kept, identity_of, kept_dir
from quad.build.smoke import float_references
from quad.compile.export import GraphSpec
from quad.compile.graph_specs import component_specs
from quad.core.component_call import ComponentCall
from quad.core.manifest import TaskSpec
from quad.core.precision import eight_bit_percent
from quad.core.progress import StageClock
from quad.core.slots import SlotTable
from quad.lora.read import FloatAdapter
from quad.model.adapters import read_adapter
from quad.model.base.open import Base, open_model
from quad.model.slots.network import slot_networks
from quad.quantize.observe.calibrate import CalibrationSample, component_networks
from quad.quantize.observe.probes import record_probes


@dataclass(frozen=True)
class Opened:
    """What the first stages give: the model, its networks with Sites, and its slots as they will be in the graph.

    Args:
        measured: the base with pictures of the size that ranges are measured on.
    """

    base: Base
    mixed: Mixed
    samples: tuple[CalibrationSample, ...]
    networks: Mapping[str, nn.Module]
    table: SlotTable
    specs: Mapping[str, GraphSpec]
    references: tuple[ComponentCall, ...]
    kept: Kept
    measured: Base

    @property
    def adapters(self) -> tuple[FloatAdapter, ...]:
        """As they fit the networks."""
        return self.mixed.adapters


def open_all(request: BuildRequest, clock: StageClock) -> Opened:
    """The stages open, lora, slot, solve and equalize.

    Raises:
        InputError, UnsupportedError, CompatibilityError: as `quad.build.build.build`.
    """
    with clock("open"):
        base = open_model(request.model, request.base_options)
    with clock("lora"):
        unused, limits = request.allow_unused_keys, request.rank_limits
        adapters = tuple(
            read_adapter(name, path, base.unet, unused, text_encoder=base.text_encoder, limits=limits)
            for name, path in request.adapters.items()
        )
    wanted = {None, *request.adapters}
    base = replace(base, tasks={name: spec for name, spec in base.tasks.items() if spec.adapter in wanted})
    samples = tuple(sample for sample in request.samples if sample.task in base.tasks and (sample.adapter or None) in wanted)
    if request.lambda_:
        require_truths(base, adapters, samples)
    kept = Kept(kept_dir(request), identity_of(request, base, adapters, samples))
    with clock("slot"):
        slotted = slot_networks(base.unet, base.text_encoder, adapters, request.max_rank)
        table = slotted.table
        base = replace(base, unet=slotted.unet.unet)  # the weights that equalization folds away are held by nobody then
        mixed = Mixed(slotted.unet, table, adapters, request.quality, eight_bit_percent(request.precision) or 0.0)
        mixed.split()
        networks = component_networks(base, slotted.unet, slotted.text_encoder)
        specs = component_specs(base, networks, table)
        # Taken here because bias correction will change the networks.
        references = kept_pieces.references(kept, lambda: float_references(networks, specs, table, adapters))
    with clock("solve"):
        solved = kept.value("tasks", lambda: solve_tasks(base, networks, table, adapters, samples).tasks, dict[str, TaskSpec])
        base = replace(base, tasks=solved)
    measured = replace(base, size=request.calibration_size or base.size)
    with clock("equalize"):
        if mixed.needs_probes:
            probes, channels = kept_pieces.heard_probes(
                kept, "probes.mixed", slotted.unet, lambda: record_probes(measured, networks, table, adapters, samples)
            )
            mixed = replace(mixed, probes=probes, channels=channels)
        mixed = mixed.equalized()
    return Opened(base, mixed, samples, networks, table, specs, references, kept, measured)
