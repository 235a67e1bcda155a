"""The words and figures of an admission: the manifest's quality, and a line for each check that was made or could not be."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from quad.admit.aligned import AlignedAdapter
from quad.admit.slots import Fitted
from quad.admit.trial import Trial
from quad.admit.weights import TriedWeights
from quad.core.manifest import AdapterQuality, TaskSpec
from quad.core.slots import TEXT_ENCODER
from quad.lora.read import FloatAdapter
from quad.runtime.bundle import Bundle
from quad.runtime.golden_outputs import read_probes


def adapter_quality(fitted: Fitted, trial: Trial, aligned: AlignedAdapter) -> AdapterQuality:
    """`quality` of the adapter's manifest; what was not measured is left out."""
    return msgspec.structs.replace(
        aligned.measured or AdapterQuality(),
        product_db=msgspec.UNSET if fitted.product_db is None or aligned.trained else fitted.product_db,
        energy=fitted.energy,
        effect=trial.effect,
        lost=max(use.lost for use in trial.sites.values()) if trial.sites else msgspec.UNSET,
        calls=aligned.measured_calls or msgspec.UNSET,
    )


def task_notes(tasks: Mapping[str, TaskSpec]) -> list[str]:
    """A line for each task that runs otherwise than one of a build would."""
    return [
        f"task {task}: its sampler's table was solved for another adapter" for task, spec in tasks.items() if spec.sampler.kind == "olss"
    ]


def word_notes(adapter: FloatAdapter) -> list[str]:
    """A line about words that the LoRA file brings, which a pack does not hold."""
    if not adapter.embeddings:
        return []
    return [f"the pack does not hold the words {', '.join(adapter.embeddings)}: load them from the LoRA file, quad run --embedding FILE"]


def checks(
    bundle: Bundle, fitted: Fitted, trial: Trial, aligned: AlignedAdapter, weights: TriedWeights | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The checks that were made and those that were not, a line each."""
    calls = len(read_probes(bundle))
    checked, unchecked = [f"effect on {calls} stored calls, by the bundle's own graph"], []
    if fitted.slots:
        checked.insert(0, f"rank, clipping and steps of {len(fitted.slots)} slots")
    else:
        unchecked.append("slots: this bundle quantizes nothing")
    if trial.sites:
        more = f" and {len(aligned.own_calls)} of its own" if aligned.own_calls else ""
        checked.append(f"ranges of {len(trial.sites)} activations of the U-Net on {calls} stored calls{more}")
    else:
        unchecked.append(f"ranges of activations: {trial.unread}")
    if weights is not None:
        checked.append(f"weights up to {max(weights.uses):g}: {weights}")
    if aligned.measured is None:
        unchecked.append("quality against the full-precision model, and on pictures of its own task: give --base MODEL")
    else:
        subject = "output" if aligned.measured.effect_db is msgspec.UNSET else "output and effect"
        checked.append(f"{subject} against the full-precision model on {aligned.measured_calls} calls")
    if TEXT_ENCODER in fitted.components:
        unchecked.append("activations of the text encoder, and their effect on the stored calls, whose words are fixed")
    unchecked.append("whole pictures: quad run, or quad eval on held-out samples")
    return tuple(checked), tuple(unchecked)
