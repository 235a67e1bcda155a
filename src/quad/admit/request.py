"""The request of an admission, and its result."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from quad.admit.repack import pack_defaults
from quad.admit.slots import SlotFit, worst
from quad.core.component_call import BASE_SOURCE
from quad.core.device import CPU
from quad.core.errors import UsageError, mismatch
from quad.core.manifest import AdapterManifest
from quad.core.sampling import AdapterDefaults
from quad.core.storage.files import real_path, require_file, require_writable
from quad.core.storage.reading import is_directory
from quad.lora.file import defaults_of
from quad.lora.low_rank import MIN_ENERGY, RankLimits
from quad.runtime.adapter_defaults import check_defaults
from quad.runtime.calibration_sample import CalibrationSample
from quad.runtime.engines.engine import default_threads

MOST_AT_ONCE = 2  # each holds activations of its own
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class AdaptRequest:
    """One admission.

    Args:
        bundle: the frozen bundle's directory; nothing in it is written.
        name: what the adapter will be called.
        adapter: LoRA file or directory, of any dialect; with `packed_for` a pack.
        output: the pack to write.
        packed_for: another bundle of the same model, which the adapter is a pack for; None for a LoRA.
        base: the model that the bundle was built from; None admits without it.
        vae: the autoencoder's file or directory that the bundle was built with in place of the model's own; read with `base` alone.
        samples: calls to learn from and to measure on; read with `base` alone.
        prompts: in place of the samples' own.
        task: what the adapter is for; None for the task of its name where the bundle has one, else for none.
        like: a task of the bundle whose way (conditioning, sampler) a new task takes.
        distill_steps: of training, with `base`; None and 0 for none.
        min_energy: an adapter that keeps less of an update where it is converted or cut is refused.
        allow_unused_keys: pass over LoRA keys that match nothing.
        defaults: how the adapter is meant to be run, as far as it is known.
        device: that torch computes on, one of `quad.core.device.DEVICES`; read with `base` alone.
        engine: what runs the bundle's U-Net; `auto` takes its first that is installed.
        at_once: how many stored calls run at once, each on one thread; the pack does not depend on it.
    """

    bundle: Path
    name: str
    adapter: Path
    _: KW_ONLY
    output: Path
    packed_for: Path | None = None
    base: Path | None = None
    vae: Path | None = None
    samples: Sequence[CalibrationSample] = ()
    prompts: Sequence[str] = ()
    task: str | None = None
    like: str | None = None
    distill_steps: int | None = None
    min_energy: float = MIN_ENERGY
    allow_unused_keys: bool = False
    defaults: AdapterDefaults = field(default_factory=AdapterDefaults)
    device: str = CPU
    engine: str = "auto"
    at_once: int = field(default_factory=lambda: min(MOST_AT_ONCE, default_threads()))

    def check(self) -> None:
        """Refuse values outside their range before anything is loaded.

        Raises:
            UsageError: a name that cannot be a file's or means something else, or a number or option that does not fit.
            InputError: something else than a file is where the pack goes. BackendError: nothing can be written there.
        """
        if not _NAME.fullmatch(self.name) or self.name == BASE_SOURCE:
            expected = f"a name of letters, digits, dot, dash and underscore, other than {BASE_SOURCE}"
            raise UsageError(mismatch("NAME=PATH", expected, repr(self.name), "choose another"))
        if self.task is not None and not _NAME.fullmatch(self.task):
            raise UsageError(mismatch("--task", "a name of letters, digits, dot, dash and underscore", repr(self.task), "choose another"))
        if is_directory(self.output):
            raise UsageError(mismatch("-o", "a file to write", f"a directory {self.output}", f"name it: {self.output}/{self.name}.qpack"))
        require_file(self.output)
        if real_path(self.output).is_relative_to(real_path(self.bundle)):
            raise UsageError(mismatch("-o", "a file outside of the bundle, which is frozen", self.output, "choose another place"))
        if real_path(self.output) == real_path(self.adapter):
            raise UsageError(mismatch("-o", "another file than the LoRA itself", self.output, "choose another place"))
        device = None if self.device == CPU else self.device
        learning = (
            ("--distill-steps", self.distill_steps),
            ("--prompt", tuple(self.prompts) or None),
            ("--vae", self.vae),
            ("--device", device),
        )
        for option, value in learning:
            if value is not None and self.base is None:
                raise UsageError(mismatch(option, "a model to learn from", "none", "give it: --base MODEL"))
        require_writable(self.output)
        check_defaults("NAME=PATH", self.defaults)
        RankLimits(None, self.min_energy).check()
        if (self.distill_steps or 0) < 0:
            raise UsageError(mismatch("--distill-steps", "0 or more", self.distill_steps, "choose a larger one"))

    def with_files_defaults(self) -> AdaptRequest:
        """With what the adapter's file says of how it is meant to be run, where nothing else was said.

        Raises:
            InputError: the file is missing, or no LoRA's. VerificationError: nor a pack, where one is given. UsageError: it names a sampler
            that there is not.
        """
        stated = defaults_of(self.adapter) if self.packed_for is None else pack_defaults(self.adapter)
        defaults = self.defaults.over(stated)
        check_defaults(f"{self.adapter}", defaults)
        return replace(self, defaults=defaults)


@dataclass(frozen=True, kw_only=True)
class AdaptResult:
    """One finished admission.

    Args:
        manifest: as written into the pack.
        slots: how each slot took the adapter.
        applied: share of the file's update that the pack holds.
        trial: see `quad.admit.trial.Trial.to_json`.
        alignment: see `Alignment.to_json`; empty without the base.
        checked, unchecked: what was looked at and what was not, a line each.
        notes: what was done to the adapter, a line each.
    """

    pack: Path
    manifest: AdapterManifest
    slots: tuple[SlotFit, ...]
    applied: float
    trial: Mapping[str, Any]
    seconds: float
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]
    notes: tuple[str, ...] = ()
    alignment: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The object of `quad adapt --json`."""
        manifest = self.manifest
        return {
            "pack": str(self.pack),
            "name": manifest.name,
            "tasks": sorted(manifest.tasks),
            "rank": manifest.rank,
            "bits": manifest.bits,
            "size_bytes": manifest.size_bytes,
            "seconds": self.seconds,
            "applied": self.applied,
            "headroom": None if manifest.headroom is msgspec.UNSET else manifest.headroom,
            "quality": {} if manifest.quality is msgspec.UNSET else msgspec.to_builtins(manifest.quality),
            "alignment": dict(self.alignment),
            "slots": {slot.path: slot.to_json() for slot in worst(self.slots)},
            "trial": dict(self.trial),
            "checked": list(self.checked),
            "unchecked": list(self.unchecked),
            "notes": list(self.notes),
        }
