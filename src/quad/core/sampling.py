"""How a sampler walks: its kind, the settings that diffusers' schedulers have, in diffusers' words, and a solved table."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

# What files may say at most: numbers beyond it are damage, or meant to take all memory.
MOST_STEPS = 100_000

SamplerKind = Literal[
    "ddim", "ddpm", "pndm", "euler", "euler-ancestral", "heun", "lms",
    "dpmsolver++", "sde-dpmsolver++", "dpmsolver-sde", "dpmsolver", "unipc", "lcm", "tcd", "olss",
]  # fmt: skip


class SamplerSettings(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Settings of one sampler; each kind reads those that its diffusers class has.

    The defaults are those of a sampler without settings: what a bundle that names only kind and steps means.

    Args:
        timestep_spacing: which training timesteps are visited. `linspace` and `leading` as diffusers' class of that kind understands them.
        steps_offset: added to the timesteps of `leading`.
        set_alpha_to_one: ddim and pndm end without noise; else at the noise of timestep 0.
        clip_sample_range: the estimated clean latent is clipped to this on both sides (ddim, ddpm, heun, lcm); None: not at all.
        sigmas: how noise levels lie between first and last: as the timesteps say, `karras` (rho 7) or `exponential`.
        sigma_min, sigma_max: ends of `karras` and `exponential`; None: those of the schedule.
        final_sigmas_type: the last noise level is 0, or that of timestep 0.
        solver_order: highest order of dpmsolver and unipc.
        solver_type: `midpoint` or `heun` for dpmsolver of order 2, `bh1` or `bh2` for unipc; None: `midpoint` or `bh2`.
        lower_order_final: the last steps fall back to lower orders (dpmsolver under 15 steps, unipc always).
        euler_at_final: dpmsolver's last step is of order 1.
        lambda_min_clipped: dpmsolver visits no timestep whose log signal-to-noise is under this; None: all.
        disable_corrector: steps of unipc after which nothing is corrected.
        skip_prk_steps: pndm begins with lower orders, not with Runge-Kutta steps.
        original_inference_steps: timesteps that an lcm or tcd model was distilled on.
        timestep_scaling: of lcm's boundary condition.
        variance_type: noise that ddpm adds: the posterior's, or beta.
        eta: share of noise in a step of tcd (the paper's gamma).
    """

    timestep_spacing: Literal["leading", "trailing", "linspace"] = "trailing"
    steps_offset: Annotated[int, msgspec.Meta(ge=0)] = 0
    set_alpha_to_one: bool = True
    clip_sample_range: Annotated[float, msgspec.Meta(gt=0)] | None = None
    sigmas: Literal["timesteps", "karras", "exponential"] = "timesteps"
    sigma_min: Annotated[float, msgspec.Meta(gt=0)] | None = None
    sigma_max: Annotated[float, msgspec.Meta(gt=0)] | None = None
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    solver_order: Literal[1, 2, 3] = 2
    solver_type: Literal["midpoint", "heun", "bh1", "bh2"] | None = None
    lower_order_final: bool = True
    euler_at_final: bool = False
    lambda_min_clipped: float | None = None
    disable_corrector: tuple[int, ...] = ()
    skip_prk_steps: bool = True
    original_inference_steps: Annotated[int, msgspec.Meta(ge=1)] = 50
    timestep_scaling: float = 10.0
    variance_type: Literal["fixed_small", "fixed_large"] = "fixed_small"
    eta: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.3


class OlssTable(msgspec.Struct, frozen=True):
    """A solved OLSS sampler. Source: docs/method.md section 6.

    Args:
        timesteps: the kept timesteps, n entries.
        w: weight of the initial noise for each step, n entries.
        v: weights of the model outputs so far, row k has k + 1 entries.
    """

    timesteps: tuple[int, ...]
    w: tuple[float, ...]
    v: tuple[tuple[float, ...], ...]


class SamplerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The sampler of a task.

    Args:
        kind: the method.
        steps: how many; heun asks the network twice in each but the last, pndm once more than it has steps.
        olss: the solved table where kind is `olss`.
        settings: how it walks; unset means `SamplerSettings()`, and leaves no trace in the JSON.
    """

    kind: SamplerKind
    steps: Annotated[int, msgspec.Meta(ge=1, le=MOST_STEPS)]
    olss: OlssTable | None = None
    settings: SamplerSettings | msgspec.UnsetType = msgspec.UNSET


class AdapterDefaults(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How an adapter is meant to be run; what the caller of a picture says goes before it.

    Args:
        sampler: `KIND` or `KIND:STEPS`, as users write it; None for the task's own.
        guidance: classifier-free guidance scale; None for the task's own.
        trigger_words: what a prompt has to say for the adapter to show, for people to read.
    """

    sampler: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    guidance: float | None = None
    trigger_words: Annotated[str, msgspec.Meta(max_length=1000)] | None = None

    def over(self, other: AdapterDefaults) -> AdapterDefaults:
        """These, and the other's where these say nothing."""
        said = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        return msgspec.structs.replace(other, **said)
