/**
 * The one shape of all samplers: a schedule of network calls, and what a solver does with each output; as
 * `quad.runtime.samplers.contract`.
 *
 *     symbol   here        meaning
 *     x_t      `xt`        variance-preserving state, sqrt(abar) x_0 + sqrt(1 - abar) eps: what network and caller see
 *     x        `state`     what a solver computes with: x_t times the schedule's scale
 *     abar     `abars`     share of signal variance left, 1 is clean
 *     sigma    `sigma`     noise over signal, sqrt((1 - abar) / abar)
 *     x_0      `x0`        estimated clean latent
 *     eps      `eps`       estimated unit noise
 *     v        `output`    sqrt(abar) eps - sqrt(1 - abar) x_0, for prediction `v_prediction`
 *
 * Source: Salimans and Ho 2022, appendix D (v); Song et al. 2021 (DDIM), Eq. 9.
 */

import { mismatch, UnsupportedError } from "../core/errors.js";
import { roundHalfEven } from "../core/numbers.js";
import type { SamplerSettings } from "../core/sampling.js";
import type { NoiseSchedule } from "../core/task.js";
import type { Generator } from "../noise/generator.js";
import { type Array64, combine } from "./arrays.js";
import { alphasCumprod, type SigmaPath } from "./schedule.js";

/** Where the network is called, and how noisy the state is there. */
export interface SamplingSchedule {
  /** One per network call. */
  readonly timesteps: readonly number[];
  /** Signal share of the state before each call, and 1 after the last. */
  readonly abars: readonly number[];
  /** State over x_t, at the same places. */
  readonly scales: readonly number[];
  /** What unit noise is multiplied with to be the first state. */
  readonly initScale: number;
  /** 2 where a step calls twice. */
  readonly callsPerStep: number;
  /** It has to be taken from its beginning. */
  readonly fromStart: boolean;
}

/** One network call: its index in the schedule, the states before it, and the raw output. */
export interface SamplerStep {
  readonly index: number;
  readonly state: Array64;
  readonly xt: Array64;
  readonly output: Array64;
}

/** A solver on its schedule; one object serves one run, and may keep earlier steps. */
export interface Sampler {
  readonly sampling: SamplingSchedule;
  /** The state that this network output leads to. */
  advance(step: SamplerStep): Array64;
}

/** The pair (x_0, eps). */
export interface Estimate {
  readonly x0: Array64;
  readonly eps: Array64;
}

/** Everything that a sampler is made of: the base's schedule, steps and settings, and the generator of fresh noise. */
export class SamplerSetup {
  readonly schedule: NoiseSchedule;
  readonly steps: number;
  readonly settings: SamplerSettings;
  readonly #rng: Generator;

  constructor(schedule: NoiseSchedule, steps: number, settings: SamplerSettings, rng: Generator) {
    this.schedule = schedule;
    this.steps = steps;
    this.settings = settings;
    this.#rng = rng;
  }

  /** The pair (x_0, eps) that a network output means; the settings may clip x_0, which leaves eps as it is. */
  estimate(step: SamplerStep, abar: number): Estimate {
    const { x0, eps } = splitOutput(this.schedule.prediction, step.output, step.xt, abar);
    const limit = this.settings.clip_sample_range;
    return { x0: limit === null ? x0 : x0.map((value) => Math.min(Math.max(value, -limit), limit)), eps };
  }

  /** Fresh unit noise of the state's size. */
  noise(like: Array64): Array64 {
    return this.#rng.standardNormal([like.length]);
  }
}

/** The pair (x_0, eps) that a network output means at x_t. Raises an `UnsupportedError` where x_0 cannot be told. */
export function splitOutput(prediction: NoiseSchedule["prediction"], output: Array64, xt: Array64, abar: number): Estimate {
  const [signal, noise] = [Math.sqrt(abar), Math.sqrt(1 - abar)];
  switch (prediction) {
    case "v_prediction":
      return { x0: combine([signal, xt], [-noise, output]), eps: combine([signal, output], [noise, xt]) };
    case "sample":
      return { x0: output, eps: xt.map((value, i) => (value - signal * output[i]!) / noise) };
    case "epsilon": {
      if (abar > 0) return { x0: xt.map((value, i) => (value - noise * output[i]!) / signal), eps: output };
      const way = "use the euler sampler or a base without rescaled betas";
      throw new UnsupportedError(mismatch("sampler", "v_prediction or sample at zero terminal SNR", "epsilon", way));
    }
  }
}

/** The schedule of a solver whose state is x_t itself, at whole timesteps. */
export function preservingSchedule(schedule: NoiseSchedule, timesteps: readonly number[], fromStart = false): SamplingSchedule {
  const alphas = alphasCumprod(schedule);
  const abars = [...timesteps.map((timestep) => alphas[roundHalfEven(timestep)]!), 1];
  return { timesteps, abars, scales: abars.map(() => 1), initScale: 1, callsPerStep: 1, fromStart };
}

/** The schedule of a solver whose state is x_0 + sigma eps. */
export function sigmaSchedule({ timesteps, sigmas }: SigmaPath, settings: SamplerSettings, callsPerStep = 1): SamplingSchedule {
  const scales = [...sigmas.slice(0, -1).map((sigma) => Math.sqrt(1 + sigma ** 2)), 1];
  // As diffusers: where the last training timestep is not sure to be visited, unit noise is x_t, else it is eps.
  const initScale = settings.timestep_spacing === "leading" ? scales[0]! : sigmas[0]!;
  return { timesteps, abars: sharesAt(sigmas), scales, initScale, callsPerStep, fromStart: false };
}

/** The schedule of a solver whose state is x_t itself, from its noise levels. */
export function solverSchedule({ timesteps, sigmas }: SigmaPath): SamplingSchedule {
  return { timesteps, abars: sharesAt(sigmas), scales: sigmas.map(() => 1), initScale: 1, callsPerStep: 1, fromStart: false };
}

/** Signal shares at noise levels; after the last call the state counts as clean, whatever noise is left, as in diffusers. */
function sharesAt(sigmas: readonly number[]): number[] {
  return [...sigmas.slice(0, -1).map((sigma) => 1 / (1 + sigma ** 2)), 1];
}
