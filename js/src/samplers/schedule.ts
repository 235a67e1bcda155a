/**
 * Noise levels and timesteps, with the numbers of diffusers in float64; as `quad.runtime.samplers.schedule`.
 *
 *     symbol     here              meaning
 *     beta_t     `betas`           variance added at training timestep t
 *     abar_t     `alphasCumprod`   prod_{s<=t} (1 - beta_s), the share of signal variance left at t
 *     sigma_t    `sigmasOf`        sqrt((1 - abar_t) / abar_t), noise over signal
 *     rho        `RHO`             how much more densely `karras` visits low noise
 *
 * Source: Ho et al. 2020 (linear); Nichol and Dhariwal 2021, Eq. 17 (squaredcos_cap_v2); Lin et al. 2023, Algorithm 1 (zero terminal SNR) and
 * Table 2 (spacings); Karras et al. 2022, Eq. 5.
 */

import { mismatch, UnsupportedError, UsageError } from "../core/errors.js";
import { interpolate, linspace, roundHalfEven } from "../core/numbers.js";
import type { SamplerSettings } from "../core/sampling.js";
import type { NoiseSchedule } from "../core/task.js";
import { general } from "../core/text.js";

const MAX_BETA = 0.999;
/** In place of abar = 0, where sigma would be infinite. */
const TERMINAL_ABAR = 2 ** -24;
const RHO = 7;
const shares = new WeakMap<NoiseSchedule, Float64Array>();

/** Timesteps of the network's calls, and one noise level more. */
export interface SigmaPath {
  readonly timesteps: readonly number[];
  readonly sigmas: readonly number[];
}

/** The signal share abar_t of each training timestep; exactly 0 at the end where the schedule is rescaled so. */
export function alphasCumprod(schedule: NoiseSchedule): Float64Array {
  const known = shares.get(schedule);
  if (known !== undefined) return known;
  if (schedule.steps < 2) {
    throw new UnsupportedError(mismatch("noise schedule", "2 or more steps", schedule.steps, "mend the base model's scheduler"));
  }
  let product = 1;
  let abar = betas(schedule).map((beta) => (product *= 1 - beta));
  if (schedule.rescale_zero_snr) {
    const root = abar.map(Math.sqrt);
    const [first, last] = [root[0]!, root.at(-1)!];
    abar = root.map((value) => ((value - last) * (first / (first - last))) ** 2);
  }
  shares.set(schedule, abar);
  return abar;
}

function betas(schedule: NoiseSchedule): Float64Array {
  const { steps, beta_start: low, beta_end: high } = schedule;
  if (schedule.trained_betas !== undefined) return Float64Array.from(schedule.trained_betas);
  switch (schedule.beta_schedule) {
    case "linear":
      return linspace(low, high, steps);
    case "scaled_linear":
      return linspace(Math.sqrt(low), Math.sqrt(high), steps).map((value) => value ** 2);
    case "squaredcos_cap_v2": {
      const share = (step: number): number => Math.cos((((step / steps + 0.008) / 1.008) * Math.PI) / 2) ** 2;
      return Float64Array.from({ length: steps }, (_, step) => Math.min(1 - share(step + 1) / share(step), MAX_BETA));
    }
  }
}

/** Noise over signal of each training timestep, finite at zero terminal SNR. */
export function sigmasOf(schedule: NoiseSchedule): Float64Array {
  const abar = Float64Array.from(alphasCumprod(schedule));
  if (schedule.rescale_zero_snr) abar[abar.length - 1] = TERMINAL_ABAR;
  return abar.map((share) => Math.sqrt((1 - share) / share));
}

/** Refuse a number of steps outside 1 to `most`. */
export function checkSteps(sampler: string, steps: number, most: number): void {
  if (steps >= 1 && steps <= most) return;
  throw new UsageError(mismatch(`sampler '${sampler}'`, `1 to ${most} steps`, steps, "ask for another number of steps"));
}

/**
 * `steps` timesteps, falling, whole but for `linspace`. `spare` timesteps are spaced with the others below them and left out; `last` is how
 * many timesteps of the schedule may be visited.
 */
function spacedTimesteps(schedule: NoiseSchedule, steps: number, settings: SamplerSettings, spare = 0, last = schedule.steps): number[] {
  const points = steps + spare;
  if (settings.timestep_spacing === "trailing") {
    const stride = schedule.steps / steps;
    const count = Math.ceil(last / stride);
    return Array.from({ length: count }, (_, i) => roundHalfEven(last - i * stride) - 1).filter((timestep) => timestep >= 0);
  }
  if (settings.timestep_spacing === "linspace") return [...linspace(0, last - 1, points)].reverse().slice(0, steps);
  const stride = Math.floor(last / points);
  const leading = Array.from({ length: points }, (_, i) => (points - 1 - i) * stride + settings.steps_offset).slice(0, steps);
  if (leading[0]! >= schedule.steps) {
    const where = `leading spacing of ${steps} steps`;
    throw new UsageError(mismatch(where, `timesteps under ${schedule.steps}`, general(leading[0]!), "ask for fewer steps"));
  }
  return leading;
}

/** The timesteps of ddim, ddpm and pndm. Raises a `UsageError` for a number of steps that the schedule has no room for. */
export function wholeTimesteps(sampler: string, schedule: NoiseSchedule, steps: number, settings: SamplerSettings): number[] {
  checkSteps(sampler, steps, schedule.steps);
  return spacedTimesteps(schedule, steps, settings).map(roundHalfEven);
}

/** The fractional training timesteps at noise levels, by interpolation of log sigma. */
export function timestepsAt(schedule: NoiseSchedule, levels: readonly number[]): number[] {
  const table = sigmasOf(schedule).map(Math.log);
  const places = Float64Array.from(table, (_, index) => index);
  return levels.map((level) => interpolate(Math.log(level), table, places));
}

/** The noise levels of `karras` or `exponential` between two, falling. */
function noiseLevels(first: number, last: number, steps: number, settings: SamplerSettings): number[] {
  const high = settings.sigma_max ?? first;
  const low = settings.sigma_min ?? last;
  if (settings.sigmas === "exponential") return [...linspace(Math.log(high), Math.log(low), steps)].map(Math.exp);
  const [top, bottom] = [high ** (1 / RHO), low ** (1 / RHO)];
  return [...linspace(0, 1, steps)].map((ramp) => (top + ramp * (bottom - top)) ** RHO);
}

function finalLevel(schedule: NoiseSchedule, settings: SamplerSettings): number {
  return settings.final_sigmas_type === "zero" ? 0 : sigmasOf(schedule)[0]!;
}

/** The noise levels, where each is under the one before by more than rounding. */
function falling(sampler: string, levels: readonly number[]): readonly number[] {
  if (levels.slice(1).every((level, index) => level < levels[index]! * (1 - 1e-9))) return levels;
  const way = "ask for fewer steps or choose another spacing";
  throw new UsageError(mismatch(`sampler '${sampler}'`, "noise levels that fall", "two that do not", way));
}

/** The path of euler, heun and lms. */
export function sigmaPath(sampler: string, schedule: NoiseSchedule, steps: number, settings: SamplerSettings): SigmaPath {
  checkSteps(sampler, steps, schedule.steps);
  const table = sigmasOf(schedule);
  let timesteps = spacedTimesteps(schedule, steps, settings);
  let levels = levelsAt(table, timesteps);
  if (settings.sigmas !== "timesteps") {
    levels = noiseLevels(levels[0]!, levels.at(-1)!, steps, settings);
    timesteps = timestepsAt(schedule, levels);
  }
  return { timesteps, sigmas: [...falling(sampler, levels), finalLevel(schedule, settings)] };
}

/** The path of dpmsolver and unipc, with whole timesteps. */
export function solverPath(sampler: string, schedule: NoiseSchedule, steps: number, settings: SamplerSettings): SigmaPath {
  checkSteps(sampler, steps, schedule.steps - 1);
  const table = sigmasOf(schedule);
  let timesteps: number[];
  let levels: number[];
  if (settings.sigmas === "timesteps") {
    timesteps = spacedTimesteps(schedule, steps, settings, 1, lastTimestep(schedule, settings)).map(roundHalfEven);
    levels = levelsAt(table, timesteps);
  } else {
    levels = noiseLevels(table.at(-1)!, table[0]!, steps, settings);
    // diffusers rounds here, and cuts the fraction off there.
    const rounds = settings.sigmas === "karras" && (sampler === "unipc" || schedule.beta_schedule !== "squaredcos_cap_v2");
    timesteps = timestepsAt(schedule, levels).map(rounds ? roundHalfEven : Math.trunc);
  }
  return { timesteps, sigmas: falling(sampler, [...levels, finalLevel(schedule, settings)]) };
}

function levelsAt(table: Float64Array, timesteps: readonly number[]): number[] {
  const places = Float64Array.from(table, (_, index) => index);
  return timesteps.map((timestep) => interpolate(timestep, places, table));
}

/** How many timesteps of the schedule have a log signal-to-noise above the settings' least. */
function lastTimestep(schedule: NoiseSchedule, settings: SamplerSettings): number {
  const least = settings.lambda_min_clipped;
  if (least === null) return schedule.steps;
  const below = [...sigmasOf(schedule)].reverse().findIndex((sigma) => -Math.log(sigma) >= least);
  return schedule.steps - (below < 0 ? schedule.steps : below);
}
