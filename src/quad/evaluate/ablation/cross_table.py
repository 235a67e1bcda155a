"""The N x N table of a model: the damage that adapter i takes under the activation encodings of j. Source: docs/method.md section 4.

It says whether one profile can serve all, and whether the most sensitive adapter is the best anchor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quad.build.olss_tables import solve_tasks
from quad.core.digests import digest
from quad.evaluate.ablation.ablate import Study
from quad.evaluate.figures.identity import adapter_identities, model_identity
from quad.evaluate.figures.runs import Show
from quad.evaluate.page.output import write_json
from quad.lora.file import find_lora
from quad.model.adapters import read_adapter
from quad.model.base.open import open_model
from quad.model.slots.layers import weights_of
from quad.model.slots.network import slot_networks
from quad.quantize.encodings.integers import integer_slots
from quad.quantize.observe.calibrate import calibrate, component_networks, with_adapter
from quad.quantize.observe.probes import record_probes
from quad.quantize.profile.anchor import CrossTable, cross_table
from quad.quantize.profile.pooled_profile import UnifyOptions, unify
from quad.quantize.profile.shared_ranges import own_profiles
from quad.zoo.calibration import calibration_samples
from quad.zoo.synthetic_adapter import SYNTHETIC

CROSS_FILE, HARD_FILE = "cross.json", "cross_hard.json"


@dataclass(frozen=True)
class CrossTables:
    """Tables as JSON objects; None where no row asks for one, or there is one adapter only.

    Args:
        plain: of the study's adapters.
        hard: of these and the one made on purpose.
    """

    plain: dict[str, Any] | None
    hard: dict[str, Any] | None


def cross(study: Study, show: Show) -> CrossTables:
    """The N x N tables of a study's model, each measured once and kept in a file."""
    groups = {row.group for row in study.rows}
    adapters = {name: find_lora(path) for name, path in study.adapters.items()}
    plain = _kept(study, adapters, study.out / CROSS_FILE, show) if "profile" in groups and len(adapters) > 1 else None
    hard = _kept(study, {**adapters, SYNTHETIC: study.made}, study.out / HARD_FILE, show) if "hard" in groups else None
    return CrossTables(plain, hard)


def _kept(study: Study, adapters: Mapping[str, Path], file: Path, show: Show) -> dict[str, Any]:
    model = model_identity(study.model, open_model(study.model).digest)
    key = digest({"model": model, "adapters": adapter_identities(adapters)})
    if file.is_file():
        kept: dict[str, Any] = json.loads(file.read_bytes())
        if kept.get("key") == key:
            return kept
    show("adapters under each other's encodings", 1.0)
    found = {**measure_cross_table(study.model, adapters).to_json(), "key": key}
    write_json(file, found)
    return found


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
