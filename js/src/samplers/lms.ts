/**
 * Linear multistep: the slopes of the last steps as a polynomial in sigma, integrated over the next.
 *
 * Source: Adams and Bashforth's formulas on an uneven grid; numbers as diffusers' LMSDiscreteScheduler.
 */

import { type Array64, combine, quotient } from "./arrays.js";
import { type Sampler, type SamplerSetup, sigmaSchedule } from "./contract.js";
import { sigmaPath } from "./schedule.js";

const ORDER = 4;

/** Integrals from start to end of the Lagrange polynomials on up to four noise levels; two Gauss points are exact. */
function lagrangeWeights(levels: readonly number[], start: number, end: number): number[] {
  const [middle, half] = [(start + end) / 2, (end - start) / 2];
  const points = [middle - half / Math.sqrt(3), middle + half / Math.sqrt(3)];
  const value = (level: number, point: number): number =>
    levels.reduce((product, other) => (other === level ? product : product * ((point - other) / (level - other))), 1);
  return levels.map((level) => half * points.reduce((sum, point) => sum + value(level, point), 0));
}

/** Order up to 4, deterministic; keeps the last slopes. */
export function makeLms(setup: SamplerSetup): Sampler {
  const path = sigmaPath("lms", setup.schedule, setup.steps, setup.settings);
  const sampling = sigmaSchedule(path, setup.settings);
  let slopes: readonly Array64[] = [];
  return {
    sampling,
    advance(step) {
      const i = step.index;
      const slope = quotient(step.state, setup.estimate(step, sampling.abars[i]!).x0, path.sigmas[i]!);
      slopes = [slope, ...slopes].slice(0, ORDER);
      const levels = slopes.map((_, j) => path.sigmas[i - j]!);
      const weights = lagrangeWeights(levels, path.sigmas[i]!, path.sigmas[i + 1]!);
      return combine([1, step.state], ...slopes.map((each, j) => [weights[j]!, each] as const));
    },
  };
}
