/**
 * DPM-Solver++ as a stochastic equation, two calls a step: an ancestral step to the middle, and again with the answer found there.
 *
 *     symbol          here          meaning
 *     sigma_m         `levels`      the middle of a step in log sigma, sqrt(sigma sigma_next)
 *     D               `x0`          estimated clean latent
 *     W               `begun`       Brownian path in sigma: both noises of a step are increments of one path
 *
 *     x_target = (down / sigma) x + (1 - down / sigma) D + up (W(sigma) - W(target)) / sqrt(sigma - target)
 *
 * Source: Lu et al. 2023 (dpmsolver++), Algorithm 1 with its middle at a half, with the ancestral noise of Song et al. 2021, Eq. 16; known as
 * DPM++ SDE; numbers as diffusers' DPMSolverSDEScheduler.
 */

import { type Array64, combine } from "./arrays.js";
import { type Sampler, type SamplerSetup, sigmaSchedule } from "./contract.js";
import { ancestral } from "./euler.js";
import { sigmaPath, timestepsAt } from "./schedule.js";

/** Draws one array for each call but the last, and keeps the step it is in. */
export function makeDpmSolverSde(setup: SamplerSetup): Sampler {
  const { timesteps, sigmas } = sigmaPath("dpmsolver-sde", setup.schedule, setup.steps, setup.settings);
  const middles = sigmas.slice(0, -2).map((sigma, index) => Math.sqrt(sigma * sigmas[index + 1]!));
  const levels = [...interleaved(sigmas.slice(0, -1), middles), 0];
  const calls = interleaved(timesteps, timestepsAt(setup.schedule, middles));
  const sampling = sigmaSchedule({ timesteps: calls, sigmas: levels }, setup.settings, 2);
  let begun: readonly [Array64, Array64];
  return {
    sampling,
    advance(step) {
      const i = step.index;
      const { x0 } = setup.estimate(step, sampling.abars[i]!);
      if (levels[i + 1] === 0) return x0;
      const drawn = setup.noise(step.state);
      if (i % 2 === 0) {
        begun = [step.state, drawn];
        return ancestralStep(step.state, x0, drawn, levels[i]!, levels[i + 1]!);
      }
      const [sigma, middle, target] = [levels[i - 1]!, levels[i]!, levels[i + 1]!];
      const length = Math.sqrt(sigma - target);
      const noise = combine([Math.sqrt(sigma - middle) / length, begun[1]], [Math.sqrt(middle - target) / length, drawn]);
      return ancestralStep(begun[0], x0, noise, sigma, target);
    },
  };
}

function ancestralStep(x: Array64, x0: Array64, noise: Array64, sigma: number, target: number): Array64 {
  const { up, down } = ancestral(sigma, target);
  return combine([down / sigma, x], [1 - down / sigma, x0], [up, noise]);
}

/** The ends of steps with their middles between them. */
function interleaved(ends: readonly number[], middles: readonly number[]): number[] {
  return ends.flatMap((end, index) => (index < middles.length ? [end, middles[index]!] : [end]));
}
