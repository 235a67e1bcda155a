"""Samplers on arrays, without torch: Euler, DDIM, LCM and OLSS, and the OLSS solver. Source: method.md section 6."""

from quad.runtime.samplers.denoiser import Model, OnStep
from quad.runtime.samplers.lcm import lcm_timesteps
from quad.runtime.samplers.olss_solver import olss_error, solve_olss
from quad.runtime.samplers.run import run_sampler
from quad.runtime.samplers.schedule import alphas_cumprod, trailing_timesteps
from quad.runtime.samplers.trajectory import Trajectory, record_trajectory

__all__ = [
    "Model",
    "OnStep",
    "Trajectory",
    "alphas_cumprod",
    "lcm_timesteps",
    "olss_error",
    "record_trajectory",
    "run_sampler",
    "solve_olss",
    "trailing_timesteps",
]
