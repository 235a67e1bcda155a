/**
 * PNDM: a linear multistep rule on raw network outputs, carried along DDIM's curve (the pseudo-numerical step).
 *
 *     symbol          here          meaning
 *     abar, abar'     `abar, prev`  signal share where a step begins and ends
 *     e_t             `e`           combination of the outputs: Runge-Kutta's at first, Adams-Bashforth's later
 *     phi             `#transfer`   x_{t'} = sqrt(abar'/abar) x_t - (abar' - abar) e_t / (abar sqrt(1 - abar') + sqrt(abar (1 - abar) abar'))
 *
 * With `skip_prk_steps` (Stable Diffusion) the first step is asked twice, as in Heun's method, and the order grows from there to 4; else the
 * first three steps are Runge-Kutta steps of four calls. Outputs are combined raw, in v prediction too, and read as eps afterwards.
 * Source: Liu et al. 2022, Eqs. 9, 12, 13 and Algorithm 2; numbers as diffusers' PNDMScheduler.
 */

import { mismatch, UnsupportedError, UsageError } from "../core/errors.js";
import { roundHalfEven } from "../core/numbers.js";
import { type Array64, combine } from "./arrays.js";
import { preservingSchedule, type Sampler, type SamplerSetup, type SamplerStep, type SamplingSchedule } from "./contract.js";
import { lastAbar } from "./ddim.js";
import { alphasCumprod, wholeTimesteps } from "./schedule.js";

/** Adams-Bashforth on an even grid, newest output first. */
const ADAMS = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]] as const;
const RUNGE_KUTTA = [1 / 6, 1 / 3, 1 / 3, 1 / 6] as const;
const PRK_STEPS = 3;

/** Order up to 4, deterministic; keeps the last outputs and the state of the step it is in. */
class Pndm implements Sampler {
  readonly sampling: SamplingSchedule;
  readonly #setup: SamplerSetup;
  readonly #prk: readonly number[];
  #calls = 0;
  #outputs: readonly Array64[] = [];
  #begun: readonly Array64[] = [];

  constructor(setup: SamplerSetup, sampling: SamplingSchedule, prk: readonly number[]) {
    this.#setup = setup;
    this.sampling = sampling;
    this.#prk = prk;
  }

  get #stride(): number {
    return Math.floor(this.#setup.schedule.steps / this.#setup.steps);
  }

  advance(step: SamplerStep): Array64 {
    const timestep = roundHalfEven(this.sampling.timesteps[step.index]!);
    const place = this.#calls++;
    if (place < this.#prk.length) return this.#rungeKutta(step, timestep, place);
    if (place === 1) {
      const e = combine([0.5, step.output], [0.5, this.#outputs[0]!]);
      return this.#transfer(this.#begun[0]!, e, timestep + this.#stride, timestep);
    }
    this.#outputs = [step.output, ...this.#outputs].slice(0, ADAMS.length);
    this.#begun = [step.state];
    const weights = ADAMS[this.#outputs.length - 1]!;
    const e = combine(...this.#outputs.map((output, k) => [weights[k]!, output] as const));
    return this.#transfer(step.state, e, timestep, timestep - this.#stride);
  }

  #rungeKutta(step: SamplerStep, timestep: number, place: number): Array64 {
    const quarter = place % 4;
    if (quarter === 0) {
      this.#outputs = [step.output, ...this.#outputs];
      this.#begun = [step.state, new Float64Array(step.state.length)];
    }
    const x = this.#begun[0]!;
    const total = combine([1, this.#begun[1]!], [RUNGE_KUTTA[quarter]!, step.output]);
    this.#begun = [x, total];
    const end = place % 2 ? timestep : timestep - Math.floor(this.#stride / 2);
    return this.#transfer(x, quarter === 3 ? total : step.output, this.#prk[place - quarter]!, end);
  }

  #transfer(x: Array64, e: Array64, from: number, to: number): Array64 {
    const alphas = alphasCumprod(this.#setup.schedule);
    const abar = alphas[from]!;
    const prev = to >= 0 ? alphas[to]! : lastAbar(this.#setup);
    const isV = this.#setup.schedule.prediction === "v_prediction";
    const noise = isV ? combine([Math.sqrt(abar), e], [Math.sqrt(1 - abar), x]) : e;
    const below = abar * Math.sqrt(1 - prev) + Math.sqrt(abar * (1 - abar) * prev);
    return combine([Math.sqrt(prev / abar), x], [-(prev - abar) / below, noise]);
  }
}

/** Raises an `UnsupportedError` for a network or a schedule that it has no rule for, a `UsageError` for too few steps. */
export function makePndm(setup: SamplerSetup): Sampler {
  const { schedule, settings, steps } = setup;
  if (schedule.prediction === "sample" || schedule.rescale_zero_snr) {
    const found = schedule.prediction === "sample" ? "sample" : "zero terminal SNR";
    const expected = "a network that predicts epsilon or v, and a signal left at the end";
    throw new UnsupportedError(mismatch("sampler 'pndm'", expected, found, "choose ddim"));
  }
  const skip = settings.skip_prk_steps;
  const least = skip ? 1 : PRK_STEPS + 1;
  if (steps < least) {
    throw new UsageError(mismatch("sampler 'pndm'", `${least} steps or more`, steps, "ask for another number of steps"));
  }
  const timesteps = wholeTimesteps("pndm", schedule, steps, settings);
  const prk = skip ? [] : prkTimesteps(setup, timesteps);
  const multistep = skip ? [...timesteps.slice(0, 2), ...timesteps.slice(1)] : timesteps.slice(PRK_STEPS);
  return new Pndm(setup, preservingSchedule(schedule, [...prk, ...multistep], !skip), prk);
}

/** Four calls for each of the first three steps: begin, middle twice, end. */
function prkTimesteps(setup: SamplerSetup, timesteps: readonly number[]): number[] {
  const half = Math.floor(Math.floor(setup.schedule.steps / setup.steps) / 2);
  return timesteps.slice(0, PRK_STEPS).flatMap((begin, index) => {
    const end = timesteps[index + 1]!;
    return [begin, end + half, end + half, end];
  });
}
