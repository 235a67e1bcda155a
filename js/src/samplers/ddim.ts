/**
 * DDIM without added noise: `x_prev = sqrt(abar_prev) x_0 + sqrt(1 - abar_prev) eps`.
 *
 * Source: Song et al. 2021, Eq. 12 with sigma = 0; numbers as diffusers' DDIMScheduler.
 */

import { combine } from "./arrays.js";
import { preservingSchedule, type Sampler, type SamplerSetup } from "./contract.js";
import { alphasCumprod, wholeTimesteps } from "./schedule.js";

/** The signal share where ddim and pndm end. */
export function lastAbar(setup: SamplerSetup): number {
  return setup.settings.set_alpha_to_one ? 1 : alphasCumprod(setup.schedule)[0]!;
}

/** Order 1, deterministic. */
export function makeDdim(setup: SamplerSetup): Sampler {
  const timesteps = wholeTimesteps("ddim", setup.schedule, setup.steps, setup.settings);
  const sampling = preservingSchedule(setup.schedule, timesteps);
  const alphas = alphasCumprod(setup.schedule);
  // As diffusers: the step is the whole number of training steps, also where the spacing is not whole.
  const stride = Math.floor(setup.schedule.steps / setup.steps);
  const ends = timesteps.map((timestep) => (timestep >= stride ? alphas[timestep - stride]! : lastAbar(setup)));
  return {
    sampling,
    advance(step) {
      const { x0, eps } = setup.estimate(step, sampling.abars[step.index]!);
      const abar = ends[step.index]!;
      return combine([Math.sqrt(abar), x0], [Math.sqrt(1 - abar), eps]);
    },
  };
}
