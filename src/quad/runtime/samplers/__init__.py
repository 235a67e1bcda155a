"""Samplers on arrays, without torch: those of diffusers' Stable Diffusion pipelines, and OLSS with its solver."""

from quad.runtime.samplers.lcm import lcm_timesteps
from quad.runtime.samplers.olss.solver import olss_error, solve_olss
from quad.runtime.samplers.olss.trajectory import Trajectory, record_trajectory
from quad.runtime.samplers.run import Keep, Model, OnStep, SamplingRun, Start, add_noise, plan_sampling, run_sampler
from quad.runtime.samplers.schedule import alphas_cumprod

__all__ = [
    "Keep",
    "Model",
    "OnStep",
    "SamplingRun",
    "Start",
    "Trajectory",
    "add_noise",
    "alphas_cumprod",
    "lcm_timesteps",
    "olss_error",
    "plan_sampling",
    "record_trajectory",
    "run_sampler",
    "solve_olss",
]
