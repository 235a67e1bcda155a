"""How a sampler walks: its kind, and the settings that diffusers' schedulers have, in diffusers' words."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

SamplerKind = Literal[
    "ddim", "ddpm", "pndm", "euler", "euler-ancestral", "heun", "lms",
    "dpmsolver++", "sde-dpmsolver++", "dpmsolver", "unipc", "lcm", "olss",
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
        original_inference_steps: timesteps that an lcm model was distilled on.
        timestep_scaling: of lcm's boundary condition.
        variance_type: noise that ddpm adds: the posterior's, or beta.
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
