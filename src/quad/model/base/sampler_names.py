"""The samplers a user can name, and what each name means to diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from quad.core.errors import UsageError, mismatch
from quad.core.manifest import MOST_STEPS
from quad.core.sampling import SamplerKind

Config = Mapping[str, Any]

_EVEN: Config = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_KARRAS: Config = {**_EVEN, "use_karras_sigmas": True}
_NAMES: Mapping[str, tuple[str, Config]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", _EVEN),
    "euler-karras": ("EulerDiscreteScheduler", _KARRAS),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", _EVEN),
    "heun-karras": ("HeunDiscreteScheduler", _KARRAS),
    "lms": ("LMSDiscreteScheduler", _EVEN),
    "lms-karras": ("LMSDiscreteScheduler", _KARRAS),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {**_EVEN, "algorithm_type": "dpmsolver++"}),
    "dpmsolver++-karras": ("DPMSolverMultistepScheduler", {**_KARRAS, "algorithm_type": "dpmsolver++"}),
    "sde-dpmsolver++": ("DPMSolverMultistepScheduler", {**_EVEN, "algorithm_type": "sde-dpmsolver++"}),
    "sde-dpmsolver++-karras": ("DPMSolverMultistepScheduler", {**_KARRAS, "algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", _EVEN),
    "unipc-karras": ("UniPCMultistepScheduler", _KARRAS),
    "lcm": ("LCMScheduler", {}),
}
SAMPLER_NAMES = tuple(_NAMES)
_KARRAS_ENDING = "-karras"  # what stands before it is the kind
_DIGITS = 9  # Python itself refuses to read thousands


@dataclass(frozen=True, kw_only=True)
class SamplerChoice:
    """A sampler that the user named: kind, diffusers' class whose settings it reads, the fields the name stands for, and steps if given."""

    kind: SamplerKind
    scheduler: str
    fields: Config
    steps: int | None


def parse_sampler(text: str) -> SamplerChoice:
    """Read `KIND` or `KIND:STEPS`.

    Raises:
        UsageError: an unknown kind (the message lists those there are), or steps that are no whole number of 1 or more.
    """
    name, colon, count = text.partition(":")
    if name not in _NAMES:
        raise UsageError(mismatch("sampler", f"one of {', '.join(SAMPLER_NAMES)}, and :STEPS", repr(text), "choose one of these"))
    if colon and not (count.isascii() and count.isdigit() and len(count) <= _DIGITS and 1 <= int(count) <= MOST_STEPS):
        expected = f"a number of steps after the colon, up to {MOST_STEPS}"
        raise UsageError(mismatch(f"sampler {name!r}", expected, repr(count), f"write {name}:20"))
    scheduler, fields = _NAMES[name]
    kind = cast(SamplerKind, name.removesuffix(_KARRAS_ENDING))
    return SamplerChoice(kind=kind, scheduler=scheduler, fields=fields, steps=int(count) if colon else None)
