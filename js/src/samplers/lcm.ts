/**
 * Latent consistency sampling: jump to x_0, add fresh noise, jump again.
 *
 *     symbol          here             meaning
 *     sigma_data      `SIGMA_DATA`     0.5
 *     c_skip, c_out   `skip, out`      s^2 / ((10 t)^2 + s^2) and 10 t / sqrt((10 t)^2 + s^2), s = sigma_data
 *     f(x_t, t)       `x`              c_skip x_t + c_out x_0
 *
 * Source: Luo et al. 2023, Eq. 9 and Algorithm 3; numbers and timesteps as diffusers' LCMScheduler.
 */

import { linspace } from "../core/numbers.js";
import type { NoiseSchedule } from "../core/task.js";
import { combine } from "./arrays.js";
import { preservingSchedule, type Sampler, type SamplerSetup } from "./contract.js";
import { checkSteps } from "./schedule.js";

const SIGMA_DATA = 0.5;

/** `steps` timesteps, falling, nearly evenly spaced on the distillation grid, starting at its last. */
export function lcmTimesteps(schedule: NoiseSchedule, steps: number, grid: number, sampler: string): number[] {
  const size = Math.min(grid, schedule.steps);
  checkSteps(sampler, steps, size);
  const stride = Math.floor(schedule.steps / size);
  return [...linspace(0, size, steps, false)].map((place) => (size - Math.floor(place)) * stride - 1);
}

/** Stochastic: draws one array for each step but the last. */
export function makeLcm(setup: SamplerSetup): Sampler {
  const { settings } = setup;
  const timesteps = lcmTimesteps(setup.schedule, setup.steps, settings.original_inference_steps, "lcm");
  const sampling = preservingSchedule(setup.schedule, timesteps);
  return {
    sampling,
    advance(step) {
      const i = step.index;
      const scaled = timesteps[i]! * settings.timestep_scaling;
      const total = scaled ** 2 + SIGMA_DATA ** 2;
      const { x0 } = setup.estimate(step, sampling.abars[i]!);
      const x = combine([SIGMA_DATA ** 2 / total, step.state], [scaled / Math.sqrt(total), x0]);
      if (i + 1 === timesteps.length) return x;
      const abar = sampling.abars[i + 1]!;
      return combine([Math.sqrt(abar), x], [Math.sqrt(1 - abar), setup.noise(x)]);
    },
  };
}
