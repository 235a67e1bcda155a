"""The N x N table of a model: the damage that adapter i takes under the activation encodings of j. Source: docs/method.md section 4.

It says whether one profile can serve all, and whether the most sensitive adapter is the best anchor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from quad.build.fixed_threads import fixed_threads
from quad.build.olss_tables import solve_tasks
from quad.core.digests import digest
from quad.core.processes import is_main
from quad.core.progress import Progress
from quad.evaluate.ablation.request import AblationRequest
from quad.evaluate.ablation.results import CrossTableResult
from quad.evaluate.figures.identity import adapter_identities, model_identity
from quad.evaluate.page.output import write_json
from quad.lora.file import find_lora
from quad.lora.fit.integers import integer_slots
from quad.model.adapters import read_adapter
from quad.model.base.open import open_model
from quad.model.slots.layers import weights_of
from quad.model.slots.network import slot_networks
from quad.quantize.observe.calibrate import calibrate, component_networks, with_adapter
from quad.quantize.observe.probes import record_probes
from quad.quantize.processes.dealt import json_codec, shared
from quad.quantize.profile.anchor import CrossTable, cross_table
from quad.quantize.profile.pooled_profile import UnifyOptions, unify
from quad.quantize.profile.shared_ranges import own_profiles
from quad.zoo.calibration import calibration_samples
from quad.zoo.synthetic_adapter import SYNTHETIC

CROSS_FILE, HARD_FILE = "cross.json", "cross_hard.json"


@dataclass(frozen=True)
class CrossTables:
    """Both tables; None where no row asks for one, or there is one adapter only.

    Args:
        plain: of the adapters asked for.
        hard: of these and the one made on purpose.
    """

    plain: CrossTableResult | None
    hard: CrossTableResult | None


def cross(request: AblationRequest, progress: Progress) -> CrossTables:
    """The N x N tables of a model, each measured once and kept in a file; the same by any number of threads and processes."""
    groups = {row.group for row in request.rows}
    adapters = {name: find_lora(path) for name, path in request.adapters.items()}
    plain = hard = None
    with fixed_threads():
        if "profile" in groups and len(adapters) > 1:
            plain = _measured_once(request, adapters, request.out / CROSS_FILE, progress)
        if "hard" in groups:
            with_synthetic = {**adapters, SYNTHETIC: request.synthetic_dir}
            hard = _measured_once(request, with_synthetic, request.out / HARD_FILE, progress)
    return CrossTables(plain, hard)


def _measured_once(request: AblationRequest, adapters: Mapping[str, Path], file: Path, progress: Progress) -> CrossTableResult:
    model = model_identity(request.model, open_model(request.model).digest)
    key = digest({"model": model, "adapters": adapter_identities(adapters)})
    stored = shared(lambda: _stored(file), json_codec(CrossTableResult | None))
    if stored is not None and stored.key == key:
        return stored
    progress("adapters under each other's encodings", 1.0)
    table = measure_cross_table(request.model, adapters)
    measured = msgspec.convert({**table.to_json(), "key": key}, CrossTableResult)
    if is_main():
        write_json(file, msgspec.to_builtins(measured))
    return measured


def _stored(file: Path) -> CrossTableResult | None:
    """The table of an earlier run; None where there is none, or it is of another shape."""
    if not file.is_file():
        return None
    try:
        return msgspec.json.decode(file.read_bytes(), type=CrossTableResult)
    except msgspec.ValidationError:
        return None


def measure_cross_table(model: Path, adapters: Mapping[str, Path]) -> CrossTable:
    """Calibrate once, give every adapter the encodings it would get alone, and score all adapters under all of them.

    Args:
        adapters: name -> LoRA file.

    Raises:
        QuadError: as calibration and scoring raise.
    """
    base = open_model(model)
    loaded = [read_adapter(name, file, base.unet, text_encoder=base.text_encoder) for name, file in adapters.items()]
    base = replace(base, tasks={name: spec for name, spec in base.tasks.items() if spec.adapter in (None, *adapters)})
    samples = [sample for sample in calibration_samples(model, adapters) if sample.task in base.tasks]
    slotted = slot_networks(base.unet, base.text_encoder, loaded)
    table, networks = slotted.table, component_networks(base, slotted.unet, slotted.text_encoder)
    base = solve_tasks(base, networks, table, loaded, samples)
    statistics = calibrate(base, networks, table, loaded, samples)
    slots, options = integer_slots(table, 16), UnifyOptions()
    weights = {name: weights_of(part) for name, part in networks.items()}
    profiles = own_profiles(unify(statistics, weights, slots, loaded, options), statistics, slots, loaded, options)
    probes = record_probes(base, networks, table, loaded, with_adapter(base, samples))
    return cross_table(slotted.unet, slots, loaded, profiles, probes)
