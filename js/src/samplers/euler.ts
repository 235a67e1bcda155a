/**
 * Euler's method on the probability-flow equation dx/dsigma = (x - D(x, sigma)) / sigma, plain and ancestral.
 *
 *     symbol       here         meaning
 *     x            `step.state` variance-exploding state, x_t sqrt(1 + sigma^2)
 *     d            `slope`      dx/dsigma
 *     sigma_down   `down`       where the ancestral step goes before it adds noise
 *     sigma_up     `up`         deviation of the noise it adds, so that down^2 + up^2 = sigma_next^2
 *
 * Source: Karras et al. 2022, Algorithm 1 without the second-order correction; Song et al. 2021, Eq. 16 with eta = 1 (ancestral); numbers as
 * diffusers' EulerDiscreteScheduler and EulerAncestralDiscreteScheduler.
 */

import { combine, quotient } from "./arrays.js";
import { type Sampler, type SamplerSetup, sigmaSchedule } from "./contract.js";
import { sigmaPath } from "./schedule.js";

/** Order 1; the ancestral one draws one array for each step but the last. */
export function makeEuler(kind: "euler" | "euler-ancestral", setup: SamplerSetup): Sampler {
  const path = sigmaPath(kind, setup.schedule, setup.steps, setup.settings);
  const sampling = sigmaSchedule(path, setup.settings);
  return {
    sampling,
    advance(step) {
      const [sigma, target] = [path.sigmas[step.index]!, path.sigmas[step.index + 1]!];
      const slope = quotient(step.state, setup.estimate(step, sampling.abars[step.index]!).x0, sigma);
      if (kind === "euler" || target === 0) return combine([1, step.state], [target - sigma, slope]);
      const { up, down } = ancestral(sigma, target);
      return combine([1, step.state], [down - sigma, slope], [up, setup.noise(step.state)]);
    },
  };
}

/** Where an ancestral step goes, and the deviation of the noise that it adds there. */
export function ancestral(sigma: number, target: number): { readonly up: number; readonly down: number } {
  const up = (target * Math.sqrt(sigma ** 2 - target ** 2)) / sigma;
  return { up, down: Math.sqrt(target ** 2 - up ** 2) };
}
