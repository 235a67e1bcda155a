/**
 * DDPM, the ancestral sampler of the training process itself.
 *
 *     symbol           here              meaning
 *     abar, abar_prev  `abar, prev`      signal share before and after a step
 *     beta             `beta`            variance added between the two, 1 - abar / abar_prev
 *     mu               `mean`            mean of the posterior q(x_prev | x_t, x_0)
 *
 * Source: Ho et al. 2020, Eqs. 6 and 7; numbers as diffusers' DDPMScheduler.
 */

import { combine } from "./arrays.js";
import { preservingSchedule, type Sampler, type SamplerSetup } from "./contract.js";
import { wholeTimesteps } from "./schedule.js";

/** Order 1, stochastic: draws one array for each step that adds noise. */
export function makeDdpm(setup: SamplerSetup): Sampler {
  const sampling = preservingSchedule(setup.schedule, wholeTimesteps("ddpm", setup.schedule, setup.steps, setup.settings));
  return {
    sampling,
    advance(step) {
      const [abar, prev] = [sampling.abars[step.index]!, sampling.abars[step.index + 1]!];
      const beta = 1 - abar / prev;
      const { x0 } = setup.estimate(step, abar);
      const mean = combine([(Math.sqrt(prev) * beta) / (1 - abar), x0], [(Math.sqrt(1 - beta) * (1 - prev)) / (1 - abar), step.state]);
      const variance = setup.settings.variance_type === "fixed_large" ? beta : ((1 - prev) / (1 - abar)) * beta;
      if (sampling.timesteps[step.index] === 0 || variance === 0) return mean;
      return combine([1, mean], [Math.sqrt(variance), setup.noise(step.state)]);
    },
  };
}
