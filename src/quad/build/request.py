"""The request of a build: options by name, and their bounds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from quad.compile.backend import Backend, BackendRequest, OutputDirectory, open_backend
from quad.compile.dump import CENSUS_FILE, OPTION
from quad.compile.targets import check_options, load_target, target_names
from quad.core.byte_size import parse_bytes
from quad.core.component_call import BASE_SOURCE
from quad.core.device import CPU
from quad.core.errors import UsageError, mismatch
from quad.core.float_type import AUTO as AUTO_TYPE
from quad.core.manifest import BUNDLE_FILE
from quad.core.picture_size import PictureSize
from quad.core.precision import has_four_bits
from quad.core.profile import MOST_GROUPS
from quad.core.sampling import AdapterDefaults
from quad.core.slots import NORMALISED, SEARCHED, SlotMode
from quad.core.storage.files import real_path
from quad.lora.file import defaults_of
from quad.lora.low_rank import MIN_ENERGY, RankLimits
from quad.model.base.open import BaseOptions
from quad.model.base.text.prompt_chunks import MOST_CHUNKS
from quad.quantize.distill.options import DistillOptions
from quad.quantize.encodings.quality_steps import QualitySteps
from quad.quantize.observe.calibrate import CalibrationSample
from quad.quantize.profile.anchor import AUTO, UNIFIED, check_request
from quad.quantize.profile.groups import DEFAULT_LOSS, GroupLimits
from quad.runtime.adapter_defaults import check_defaults
from quad.runtime.arguments import thread_count

COMPENSATED, NEAREST = "compensated", "nearest"
ROUNDINGS = (COMPENSATED, NEAREST)
_CALIBRATION = "--calibration-size"
_RESERVED = (BASE_SOURCE, AUTO, UNIFIED)
CORRECTION_RANK, MOST_CORRECTION = 8, 1024
COMPACT_FROM = 2**27  # numbers of a network: what is larger is held as its file has it, see `quad.model.slots.held_weight`
ROOM = 2  # adapters at once: one that speeds up or repairs, and a style
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_BACKEND_OPTION = {"reader": "backend"}  # of a field: what only some targets read, see `Target.options`


@dataclass(frozen=True)
class BuildRequest:
    """One build.

    Args:
        model: diffusers directory, or a one-file checkpoint of Stable Diffusion.
        adapters: name -> LoRA file or directory, in the order they will be listed.
        adapter_defaults: name -> how that adapter is meant to be run, for those of which it is known.
        output: the bundle directory to write.
        samples: calls of the pipeline that the ranges must hold; those of adapters that are not built are left out.
        name: the bundle's name for people; None for one of what it holds: target, precision, and the beginning of the profile's digest.
        target: see `quad.compile.targets`.
        precision: see `quad.core.precision`; None for the target's own, `resolved_precision`.
        lora_bits: 16 or 8.
        max_rank: rank of every slot, to which larger adapters are reduced; None gives each slot what `room` says.
        adapter_ranks: adapter -> the most that a module of it gets, in place of `max_rank`.
        room: how many adapters at once each slot has rank for, those of largest rank there; None for 2.
        slots: `normalised`, A and B in one range for any adapter, with a scale for each rank channel, or `searched`, in ranges of the
            adapters at hand.
        min_energy: an adapter that keeps less of a module's update when it is reduced or converted is refused.
        allow_unused_keys: pass over LoRA keys that match nothing.
        quality: which quality steps are taken.
        anchor: whose activation ranges all adapters get: `auto` (the most sensitive adapter, or several that are equal), `unified`, a name.
        max_loss: how many dB of the U-Net's output an adapter may lose against a profile of its own, before adapters are grouped into
            several profiles; None for 3 where `max_profiles` is given, else for one profile whatever it costs.
        max_profiles: how many there may be at most; None for as many as `max_loss` needs.
        distill_steps: of training each adapter against the float network, 0 for none: it gives to the output and takes from the effect.
        lambda_: weight of the denoising loss in that training; it needs samples with their truth.
        dump_passes: a directory for the graphs after each pass and their census; None for none.
        soc: the chip that a vendor's compiler makes binaries for, or several where the target has one file a chip; None for its default.
        correction_rank: of what mends the base's error at 4 bits, beside every adapter; 0 for none, None for 8.
        weight_budget: bytes that all weights and the correction may take at 4 bits; layers whose error is felt most keep 8 while
            it lasts. None for what all of them take at 4 bits and half a byte more for a twentieth of them.
        encodings: where the same quantization is written for a vendor's own converter; None for a place beside `output`.
        rounding: of weights to int8: `compensated`, so that errors cancel on the inputs that samples bring, or `nearest`.
        literal_shared_scale: one scale for a layer's weight and its adapters' A and B, to compare with.
        size: of the pictures, `WIDTHxHEIGHT` in pixels, multiples of 64, or one number for both, or several with commas
            between; None for the model's own.
        sampler: `KIND` or `KIND:STEPS` in place of the model's own.
        clip_skip: which layer of the text encoder from the last one gives its output, as A1111 counts: 1 is the last itself.
        calibration_size: of the pictures that ranges are measured on, as `size`; None for those of the bundle.
        prompt_chunks: how many times 75 tokens of a prompt are read at most, for a CLIP text encoder of 77.
        reuse: also write the U-Net's shallow part, which takes the deep feature of an earlier step.
        tiny_decoder: also distil a small decoder of the model's own, which a caller may take in its place.
        vae: the autoencoder's file or directory, in place of the model's own.
        prediction: `epsilon` or `v`, of a one-file checkpoint; None for what it tells itself.
        device: that torch computes on: `cpu`, `cuda`, `mps`, or `auto` for an accelerator where there is one. The bundle depends on it.
        statistics: what the float networks compute in while ranges, means and inputs of layers are gathered: `f32`, `bf16`, or `auto` for
            bf16 where the processor has it and the denoiser is large. The bundle depends on it.
        threads: that one sum is dealt to. The bundle depends on it, and on no other count of threads, cores or processes.
    """

    model: Path
    adapters: Mapping[str, Path]
    output: Path
    _: KW_ONLY
    samples: Sequence[CalibrationSample] = ()
    name: str | None = None
    adapter_defaults: Mapping[str, AdapterDefaults] = field(default_factory=dict)
    target: str = "cpu"
    precision: str | None = None
    lora_bits: int = 16
    max_rank: int | None = None
    adapter_ranks: Mapping[str, int] = field(default_factory=dict)
    room: int | None = None
    slots: SlotMode = NORMALISED
    min_energy: float = MIN_ENERGY
    allow_unused_keys: bool = False
    quality: QualitySteps = field(default_factory=QualitySteps)
    anchor: str = AUTO
    max_loss: float | None = None
    max_profiles: int | None = None
    distill_steps: int = 0
    lambda_: float = 0.0
    rounding: str = COMPENSATED
    correction_rank: int | None = None
    weight_budget: str | int | None = None
    literal_shared_scale: bool = False
    dump_passes: Path | None = None
    soc: str | Sequence[str] | None = field(default=None, metadata=_BACKEND_OPTION)
    encodings: Path | None = field(default=None, metadata=_BACKEND_OPTION)
    size: str | int | None = None
    sampler: str | None = None
    calibration_size: str | int | None = None
    clip_skip: int = 1
    prompt_chunks: int = 1
    reuse: bool = False
    tiny_decoder: bool = False
    vae: Path | None = None
    prediction: str | None = None
    threads: int = 1
    device: str = CPU
    statistics: str = AUTO_TYPE

    @property
    def resolved_precision(self) -> str:
        """The precision that was asked for, or the target's own.

        Raises:
            UsageError: no such target.
        """
        return load_target(self.target).default_precision if self.precision is None else self.precision

    @property
    def resolved_correction_rank(self) -> int:
        """Rank of the base's correction, 0 for none."""
        if not has_four_bits(self.resolved_precision):
            return 0
        return CORRECTION_RANK if self.correction_rank is None else self.correction_rank

    @property
    def weight_budget_bytes(self) -> int:
        """Bytes for the weights of all networks, where a bound was given.

        Raises:
            UsageError: it is no size.
        """
        return parse_bytes("--weight-budget", self.weight_budget or 0)

    @property
    def base_options(self) -> BaseOptions:
        """How the model is opened."""
        return BaseOptions(
            self.size, self.sampler, tuple(self.adapters), adapter_defaults=self.adapter_defaults, vae=self.vae, prediction=self.prediction,
            compact_from=COMPACT_FROM,
        )  # fmt: skip

    def with_files_defaults(self) -> BuildRequest:
        """With what each adapter's file says of how it is meant to be run, where nothing else was said.

        Raises:
            InputError: a file is missing, or no LoRA's. UsageError: it names a sampler that there is not.
        """
        joint = {name: self.adapter_defaults.get(name, AdapterDefaults()).over(defaults_of(path)) for name, path in self.adapters.items()}
        for name, defaults in joint.items():
            check_defaults(f"{self.adapters[name]}", defaults)
        return replace(self, adapter_defaults={name: defaults for name, defaults in joint.items() if defaults != AdapterDefaults()})

    def rank_limits(self, adapter: str) -> RankLimits:
        """How far an adapter may be reduced."""
        return RankLimits(self.adapter_ranks.get(adapter, self.max_rank), self.min_energy)

    @property
    def measured_sizes(self) -> tuple[PictureSize, ...]:
        """Of the pictures that ranges are measured on, none for those of the bundle.

        Raises:
            UsageError: it is no size, or its sides are no multiples of 64.
        """
        return BaseOptions(self.calibration_size).asked_sizes(_CALIBRATION)

    @property
    def slot_room(self) -> int:
        """How many adapters at once each slot has rank for."""
        return ROOM if self.room is None else self.room

    @property
    def profile_limits(self) -> GroupLimits | None:
        """Bounds of the groups of adapters, None for one group whatever it costs."""
        if self.max_loss is None and self.max_profiles is None:
            return None
        loss, most = self.max_loss, self.max_profiles
        return GroupLimits(DEFAULT_LOSS if loss is None else loss, MOST_GROUPS if most is None else most)

    @property
    def backend_options(self) -> dict[str, Any]:
        """Options of some targets alone, as far as they were given."""
        names = [option.name for option in fields(self) if option.metadata == _BACKEND_OPTION]
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def backend(self) -> Backend:
        """The target's, with these options.

        Raises:
            UsageError: no such target.
        """
        return open_backend(BackendRequest(load_target(self.target), self.output, self.backend_options))

    @property
    def directories(self) -> tuple[OutputDirectory, ...]:
        """Every directory that the build replaces as a whole, the bundle's first."""
        dump = () if self.dump_passes is None else (OutputDirectory(OPTION, self.dump_passes, CENSUS_FILE),)
        return (OutputDirectory("-o", self.output, BUNDLE_FILE), *dump, *self.backend.directories)

    def check(self) -> None:
        """Refuse values outside their range before anything is loaded.

        Raises:
            UsageError: an adapter's name cannot be a file name or means something else, the anchor is no adapter, or a number is none of
            those allowed.
        """
        for name in self.adapters:
            if not _NAME.fullmatch(name):
                raise UsageError(mismatch("--adapter", "a name of letters, digits, dot, dash and underscore", repr(name), "choose another"))
            if name in _RESERVED:
                raise UsageError(mismatch("--adapter", f"a name other than {name}", repr(name), "choose another"))
        for name, defaults in self.adapter_defaults.items():
            if name not in self.adapters:
                raise UsageError(mismatch("adapter_defaults", f"one of {', '.join(self.adapters)}", repr(name), "name one of these"))
            check_defaults(f"--adapter {name}", defaults)
        check_request(self.anchor, tuple(self.adapters))
        self.base_options.check()
        self._check_calibration()
        self._check_places()
        check_options(load_target(self.target), self.backend_options)
        self.backend.check()
        thread_count("--threads", self.threads, "leave it out for 1")
        self._check_text()
        self._check_reuse()
        if self.lora_bits not in (8, 16):
            raise UsageError(mismatch("--lora-bits", "16 or 8", self.lora_bits, "choose one of these"))
        self._check_slots()
        DistillOptions(steps=self.distill_steps, lambda_=self.lambda_).check(any(sample.truth is not None for sample in self.samples))
        RankLimits(self.max_rank, self.min_energy).check()
        for name, rank in self.adapter_ranks.items():
            RankLimits(rank).check(f"--adapter {name}, rank")
        self._check_room()
        self._check_profiles()
        self._check_four_bits()
        if self.rounding not in ROUNDINGS:
            raise UsageError(mismatch("--rounding", " or ".join(ROUNDINGS), repr(self.rounding), "choose one of these"))

    def _check_four_bits(self) -> None:
        rank, four = self.correction_rank, has_four_bits(self.resolved_precision)
        if rank is not None and not four:
            raise UsageError(mismatch("--correction-rank", "--precision w4a16 or w4:mixed:P", self.resolved_precision, "leave it out"))
        if self.weight_budget is not None and not four:
            raise UsageError(mismatch("--weight-budget", "--precision w4a16 or w4:mixed:P", self.resolved_precision, "leave it out"))
        if self.weight_budget is not None and self.weight_budget_bytes < 1:
            raise UsageError(mismatch("--weight-budget", "a size", repr(self.weight_budget), "write --weight-budget 500MB"))
        if rank is not None and not 0 <= rank <= MOST_CORRECTION:
            raise UsageError(mismatch("--correction-rank", f"0 to {MOST_CORRECTION}", rank, "choose one in that range"))
        if four and self.slots != NORMALISED:
            raise UsageError(mismatch("--slots", f"{NORMALISED} with {self.resolved_precision}", self.slots, "leave it out"))
        if four and self.reuse:
            raise UsageError(mismatch("--reuse", "weights of 8 bits", self.resolved_precision, "leave one of them out"))

    def _check_profiles(self) -> None:
        limits = self.profile_limits
        if limits is None:
            return
        if not limits.loss_db >= 0.0 or math.isinf(limits.loss_db):
            raise UsageError(mismatch("--max-loss", "0 dB or more", self.max_loss, "choose one"))
        if not 1 <= limits.groups <= MOST_GROUPS:
            raise UsageError(mismatch("--max-profiles", f"1 to {MOST_GROUPS}", self.max_profiles, "choose one in that range"))

    def _check_slots(self) -> None:
        if self.slots not in (SEARCHED, NORMALISED):
            raise UsageError(mismatch("--slots", f"{SEARCHED} or {NORMALISED}", self.slots, "choose one of these"))
        if self.slots == NORMALISED and self.literal_shared_scale:
            expected = f"--slots {SEARCHED}, since normalised slots have ranges of their own"
            raise UsageError(mismatch("--literal-shared-scale", expected, self.slots, "choose that, or leave it out"))

    def _check_text(self) -> None:
        if self.clip_skip < 1:
            raise UsageError(mismatch("--clip-skip", "1 for all layers, 2 for all but the last, ...", self.clip_skip, "choose one"))
        if not 1 <= self.prompt_chunks <= MOST_CHUNKS:
            raise UsageError(mismatch("--prompt-chunks", f"1 to {MOST_CHUNKS}", self.prompt_chunks, "choose one in that range"))
        if self.prompt_chunks > 1 and not load_target(self.target).long_prompts:
            raise UsageError(mismatch("--prompt-chunks", "a target that can leave tokens out of attention", self.target, "leave it out"))

    def _check_reuse(self) -> None:
        if self.reuse and not load_target(self.target).reuse:
            readers = [name for name in target_names() if load_target(name).reuse]
            raise UsageError(mismatch("--reuse", f"target {' or '.join(readers)}", self.target, "leave it out"))
        if self.reuse and len(self.base_options.asked_sizes("--size")) > 1:
            raise UsageError(mismatch("--reuse", "one size of pictures", self.size, "leave one of them out"))
        if self.reuse and self.profile_limits is not None and self.profile_limits.groups > 1:
            raise UsageError(mismatch("--reuse", "one profile for all adapters", "--max-profiles or --max-loss", "leave one of them out"))

    def _check_calibration(self) -> None:
        if self.measured_sizes and self.backend.needs_calls:
            raise UsageError(mismatch(_CALIBRATION, "a target that measures Sites alone", self.target, "leave it out"))

    def _check_room(self) -> None:
        if self.room is not None and self.room < 1:
            raise UsageError(mismatch("--room", "1 or more adapters at once", self.room, "choose a larger one"))
        if self.room is not None and self.max_rank is not None:
            raise UsageError(mismatch("--room", "no --max-rank, which gives every slot its rank", self.max_rank, "leave one of them out"))

    def _check_places(self) -> None:
        """Each is replaced as a whole: none may be another one, or lie in it."""
        for first, second in combinations(self.directories, 2):
            outer, inner = real_path(first.path), real_path(second.path)
            if outer.is_relative_to(inner) or inner.is_relative_to(outer):
                raise UsageError(mismatch(second.option, f"a directory apart from that of {first.option}", second.path, "choose another"))
