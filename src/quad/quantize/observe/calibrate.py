"""Real work for the observers: each task's own sampler, conditioned as on the device, with the float networks.

So the ranges see all sampler steps, all adapters, and the conditional and unconditional side. Source: docs/method.md section 5, step 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import nn

from quad.core.component_call import BASE_SOURCE
from quad.core.errors import InputError, UsageError, mismatch
from quad.core.extra_graphs import TINY_DECODER
from quad.core.manifest import TaskSpec
from quad.core.slots import SlotTable
from quad.lora.fit.integers import BalancedSlots
from quad.lora.read import FloatAdapter
from quad.model.base.open import Base, text_module, vae_decoder_module, vae_encoder_module
from quad.model.device import device_of
from quad.model.slots.attention import add_sites
from quad.model.slots.network import SlottedNetwork, SlottedText
from quad.quantize.observe.observers import Feed, Statistics, observe
from quad.quantize.observe.torch_session import CallHook, RecordingSession, bind_slots, torch_sessions
from quad.runtime.calibration_sample import CalibrationSample as CalibrationSample
from quad.runtime.conditioning.condition import Pictures
from quad.runtime.conditioning.denoising import RunInputs, draw_noise, plan_run, session_encoders
from quad.runtime.conditioning.tokenizer import Tokenizer
from quad.runtime.engines.engine import Session
from quad.runtime.request import with_steps
from quad.runtime.samplers import run_sampler

PlannedRun = tuple[CalibrationSample, TaskSpec, str | None]  # a sample, its task, and the adapter that it runs with


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """How samples are run; sample k draws its noise from `seed + k`.

    Args:
        call_hook: called after every call of every component, None for no hook.
        decodes: a run goes on from its latent to a picture, and through the encoder where its task reads no picture.
    """

    seed: int = 0
    negative_prompt: str = ""
    call_hook: CallHook | None = None
    decodes: bool = True


def component_networks(base: Base, unet: SlottedNetwork, text: SlottedText | None = None) -> dict[str, nn.Module]:
    """The four float networks with Sites, as they are observed, simulated and exported; weights are shared with `base`.

    Args:
        text: the slotted text encoder, None where it has no slots.
    """
    parts = {"text_encoder": text or text_module(base), "vae_encoder": vae_encoder_module(base), "vae_decoder": vae_decoder_module(base)}
    for part in parts.values():
        add_sites(part.to(device_of(unet)))
    return {"unet": unet, **parts}


def calibrate(
    base: Base,
    networks: Mapping[str, nn.Module],
    table: SlotTable,
    adapters: Sequence[FloatAdapter],
    samples: Sequence[CalibrationSample],
    options: CalibrationOptions | None = None,
) -> Statistics:  # fmt: skip
    """`observe` over `calibration_feeds`: the statistics of all four components."""
    return observe(networks, calibration_feeds(base, networks, table, adapters, samples, options))


def calibration_feeds(
    base: Base,
    networks: Mapping[str, nn.Module],
    table: SlotTable,
    adapters: Sequence[FloatAdapter],
    samples: Sequence[CalibrationSample],
    options: CalibrationOptions | None = None,
) -> Iterator[Feed]:  # fmt: skip
    """One feed per sample: text encoder, VAE encoder, the task's sampler on the U-Net, VAE decoder. Feeds may run side by side.

    Adapters are balanced first, as `quantize_adapter` does, so that `lora_mid` has the range it will have.

    Args:
        networks: of `component_networks`.

    Raises:
        UsageError: a sample's task is unknown.
        InputError: an adapter that a sample names is not there, or an adapter has no sample.
    """
    plan = plan_samples(base, samples, adapters)
    slots = BalancedSlots(adapters, table)
    options = options or CalibrationOptions()
    tokenizer = Tokenizer(base.tokenizer, base.text)

    def run(index: int) -> None:
        sample, spec, name = plan[index]
        sessions: dict[str, Session] = dict(torch_sessions(base, networks, table))  # its own: they hold what is bound
        if options.call_hook is not None:
            sessions = {name: RecordingSession(session, name, options.call_hook) for name, session in sessions.items()}
        runner = TaskRunner(base=base, sessions=sessions, tokenizer=tokenizer, options=options)
        work = runner.run if options.decodes else runner.denoise
        work(sample, spec, slots.get(name or "", {}), index)

    for index, (_, _, name) in enumerate(plan):
        yield Feed(name or BASE_SOURCE, partial(run, index))


def plan_samples(base: Base, samples: Sequence[CalibrationSample], adapters: Sequence[FloatAdapter]) -> list[PlannedRun]:
    """Every sample with its task and the adapter it runs with.

    Raises:
        UsageError: a sample's task is unknown.
        InputError: an adapter that a sample names is not there, or an adapter has no sample.
    """
    plan = [(sample, *_chosen(base, sample)) for sample in samples]
    _check_coverage([name for _, _, name in plan], adapters)
    return plan


def with_adapter(base: Base, samples: Sequence[CalibrationSample]) -> list[CalibrationSample]:
    """Those that run with an adapter, their own or their task's."""
    return [sample for sample in samples if sample.adapter or base.tasks[sample.task].adapter]


def _chosen(base: Base, sample: CalibrationSample) -> tuple[TaskSpec, str | None]:
    if sample.task not in base.tasks:
        raise UsageError(mismatch("calibration sample", f"a task of {', '.join(base.tasks)}", repr(sample.task), "name one of these"))
    spec = base.run_with(sample.task, sample.adapter)
    if sample.steps is not None:
        spec = msgspec.structs.replace(spec, sampler=with_steps(spec.sampler, min(sample.steps, spec.sampler.steps), base.schedule))
    return spec, sample.adapter or spec.adapter


def _check_coverage(used: Sequence[str | None], adapters: Sequence[FloatAdapter]) -> None:
    """Both ways: an adapter without a sample would have ranges by luck only."""
    names = {adapter.name for adapter in adapters}
    if used and (idle := sorted(names.difference(used))):
        raise InputError(mismatch("calibration", f"a sample for adapter {idle[0]!r}", "none", "add one that names it"))
    if strange := sorted({name for name in used if name is not None} - names):
        next_step = "give it, or leave the sample out"
        raise InputError(mismatch("calibration", f"adapter {strange[0]!r}, which a sample needs", "no such adapter", next_step))


@dataclass(frozen=True, kw_only=True)
class TaskRunner:
    """The pipeline's way on torch sessions, by component name."""

    base: Base
    sessions: Mapping[str, Session]
    tokenizer: Tokenizer
    options: CalibrationOptions

    def run(self, sample: CalibrationSample, spec: TaskSpec, slots: Mapping[str, NDArray[np.float32]], index: int) -> None:
        """One picture from prompt to pixels."""
        latent = self.denoise(sample, spec, slots, index)
        image = self.sessions["vae_decoder"].run({"latent": latent})
        if TINY_DECODER in self.sessions:
            self.sessions[TINY_DECODER].run({"latent": latent})
        if not spec.reads_picture:
            # The encoder too must have seen pictures where no sample brings one.
            self.sessions["vae_encoder"].run({"image": np.clip(image, -1.0, 1.0)})
        if spec.guidance == 1.0 and slots.keys() & self.sessions["text_encoder"].inputs.keys():
            # With guidance, which a caller may ask for at any time, the adapter's text encoder reads the negative prompt too.
            self.sessions["text_encoder"].run({"input_ids": self.tokenizer(self.options.negative_prompt).ids})

    def denoise(
        self, sample: CalibrationSample, spec: TaskSpec, slots: Mapping[str, NDArray[np.float32]], index: int
    ) -> NDArray[np.float32]:
        """One clean latent `(1, c, h, w)` from a prompt; run `index` draws its own noise.

        Args:
            slots: float slot inputs of the adapter, those of the text encoder among them; empty for the base.
        """
        base = self.base
        bind_slots(self.sessions, slots)
        rng, noise = draw_noise(self.options.seed + index, None, base)
        inputs = RunInputs(
            task=sample.task,
            spec=spec,
            pictures=Pictures(sample.image, sample.mask),
            prompt=sample.prompt,
            negative_prompt=self.options.negative_prompt,
            noise=noise,
        )
        plan = plan_run(session_encoders(self.sessions, self.tokenizer), base, inputs)
        return run_sampler(spec.sampler, base.schedule, plan.network, noise, rng, start=plan.start).astype(np.float32)
