/**
 * Heun's method: an Euler step, and again with the mean of the slopes at its two ends. Calls 2k and 2k + 1 are step k; the last, to
 * sigma = 0, asks once.
 *
 * Source: Karras et al. 2022, Algorithm 1; numbers as diffusers' HeunDiscreteScheduler.
 */

import { type Array64, combine, quotient } from "./arrays.js";
import { type Sampler, type SamplerSetup, sigmaSchedule } from "./contract.js";
import { sigmaPath } from "./schedule.js";

/** Order 2, deterministic; keeps the state and slope of the step it is in. */
export function makeHeun(setup: SamplerSetup): Sampler {
  const { timesteps, sigmas } = sigmaPath("heun", setup.schedule, setup.steps, setup.settings);
  const calls = [timesteps[0]!, ...timesteps.slice(1).flatMap((timestep) => [timestep, timestep])];
  const levels = [sigmas[0]!, ...sigmas.slice(1, -1).flatMap((sigma) => [sigma, sigma]), sigmas.at(-1)!];
  const sampling = sigmaSchedule({ timesteps: calls, sigmas: levels }, setup.settings, 2);
  let begun: readonly [Array64, Array64];
  return {
    sampling,
    advance(step) {
      const i = step.index;
      const slope = quotient(step.state, setup.estimate(step, sampling.abars[i]!).x0, levels[i]!);
      if (i % 2 === 0) {
        begun = [step.state, slope];
        return combine([1, step.state], [levels[i + 1]! - levels[i]!, slope]);
      }
      const half = (levels[i]! - levels[i - 1]!) / 2;
      return combine([1, begun[0]], [half, begun[1]], [half, slope]);
    },
  };
}
