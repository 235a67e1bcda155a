"""Names of samplers as diffusers understands them: the class whose settings it reads, and the fields that the name stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]

_EVEN: Config = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_KARRAS: Config = {**_EVEN, "use_karras_sigmas": True}
SCHEDULERS: Mapping[str, tuple[str, Config]] = {
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
    # Its own class does not open without torchsde; this one has the same fields.
    "dpmsolver-sde": ("LMSDiscreteScheduler", _EVEN),
    "dpmsolver-sde-karras": ("LMSDiscreteScheduler", _KARRAS),
    "unipc": ("UniPCMultistepScheduler", _EVEN),
    "unipc-karras": ("UniPCMultistepScheduler", _KARRAS),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
