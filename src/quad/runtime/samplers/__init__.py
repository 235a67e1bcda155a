"""Samplers on arrays, without torch: those of diffusers' Stable Diffusion pipelines, and OLSS with its solver."""

from quad.runtime.samplers.denoiser import Model, OnStep
from quad.runtime.samplers.lcm import lcm_timesteps
from quad.runtime.samplers.loop import Keep, Start, add_noise
from quad.runtime.samplers.olss.solver import olss_error, solve_olss
from quad.runtime.samplers.olss.trajectory import Trajectory, record_trajectory
from quad.runtime.samplers.run import count_calls, run_sampler
from quad.runtime.samplers.schedule import alphas_cumprod

__all__ = [
    "Keep",
    "Model",
    "OnStep",
    "Start",
    "Trajectory",
    "add_noise",
    "alphas_cumprod",
    "count_calls",
    "lcm_timesteps",
    "olss_error",
    "record_trajectory",
    "run_sampler",
    "solve_olss",
]
