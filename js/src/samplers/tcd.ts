/**
 * Trajectory consistency sampling: jump past the next timestep along the trajectory, then add noise up to it.
 *
 *     symbol      here             meaning
 *     gamma       `settings.eta`   share of noise in a step: 0 is deterministic, 1 begins anew at each
 *     abar_s      `jumps`          signal share at the timestep that is jumped to, floor((1 - gamma) t_n)
 *
 *     x_s = sqrt(abar_s) x_0 + sqrt(1 - abar_s) eps
 *     x_next = sqrt(abar_n / abar_s) x_s + sqrt(1 - abar_n / abar_s) z, but for the last step, which ends at x_s
 *
 * Source: Zheng et al. 2024 (arXiv 2402.19159), section 4.3 and Algorithm 4; numbers and timesteps as diffusers' TCDScheduler.
 */

import { mismatch, UsageError } from "../core/errors.js";
import { combine } from "./arrays.js";
import { preservingSchedule, type Sampler, type SamplerSetup, splitOutput } from "./contract.js";
import { lcmTimesteps } from "./lcm.js";
import { alphasCumprod } from "./schedule.js";

/** Stochastic unless gamma is 0: draws one array for each step but the last. The estimated clean latent is never clipped. */
export function makeTcd(setup: SamplerSetup): Sampler {
  const { eta, original_inference_steps } = setup.settings;
  if (!(eta >= 0 && eta <= 1)) throw new UsageError(mismatch("sampler 'tcd'", "eta from 0 to 1", eta, "choose one in that range"));
  const timesteps = lcmTimesteps(setup.schedule, setup.steps, original_inference_steps, "tcd");
  const sampling = preservingSchedule(setup.schedule, timesteps);
  const alphas = alphasCumprod(setup.schedule);
  // In single precision, as diffusers: a product that is nearly whole is taken for whole.
  const jumps = [...timesteps.slice(1), 0].map((timestep) => alphas[Math.floor(Math.fround(Math.fround(1 - eta) * timestep))]!);
  return {
    sampling,
    advance(step) {
      const i = step.index;
      const share = jumps[i]!;
      const { x0, eps } = splitOutput(setup.schedule.prediction, step.output, step.xt, sampling.abars[i]!);
      const x = combine([Math.sqrt(share), x0], [Math.sqrt(1 - share), eps]);
      if (i + 1 === timesteps.length || eta === 0) return x;
      const kept = sampling.abars[i + 1]! / share;
      return combine([Math.sqrt(kept), x], [Math.sqrt(1 - kept), setup.noise(x)]);
    },
  };
}
