/**
 * DPM-Solver, multistep: the half-linear flow solved exactly but for the network's part, which is a polynomial in log signal-to-noise.
 *
 *     symbol           here           meaning
 *     alpha, s         `alpha, s`     sqrt(abar) and sqrt(1 - abar): signal and noise of x_t
 *     lambda           `logRatio`     log(alpha / s), half the log signal-to-noise
 *     h                `h`            lambda_next - lambda
 *     m                `outputs`      what is integrated: x_0 (dpmsolver++, sde-dpmsolver++) or eps (dpmsolver), newest first
 *     D_0, D_1, D_2    `d`            m and its divided differences
 *     z                `z`            -h, -2 h or h: the exponent of the method
 *     E                `e`            e^z - 1
 *
 *     x_next = a x - c (E D_0 + g_1 D_1 + g_2 D_2 + noise), c = alpha_next or s_next
 *
 * Source: Lu et al. 2022 (dpmsolver), Eqs. 3.7 and appendix; Lu et al. 2023 (dpmsolver++), Algorithm 2 and appendix; numbers as diffusers'
 * DPMSolverMultistepScheduler.
 */

import { mismatch, UnsupportedError } from "../core/errors.js";
import { type Array64, combine, quotient } from "./arrays.js";
import { type Sampler, type SamplerSetup, type SamplerStep, type SamplingSchedule, solverSchedule } from "./contract.js";
import { solverPath } from "./schedule.js";

/** Under so many steps the last ones fall back to lower orders, where the settings ask for it. */
const FEW_STEPS = 15;

export type DpmKind = "dpmsolver" | "dpmsolver++" | "sde-dpmsolver++";

/** lambda of a noise level; infinite without noise. */
export function logRatio(sigma: number): number {
  return sigma > 0 ? -Math.log(sigma) : Infinity;
}

/** The pair (alpha, s) of a noise level. */
export function signalAndNoise(sigma: number): readonly [number, number] {
  const alpha = 1 / Math.sqrt(1 + sigma ** 2);
  return [alpha, sigma * alpha];
}

/** Order up to 3; `sde-dpmsolver++` draws one array for each step that does not end without noise. */
class DpmSolver implements Sampler {
  readonly sampling: SamplingSchedule;
  readonly #kind: DpmKind;
  readonly #setup: SamplerSetup;
  readonly #sigmas: readonly number[];
  #outputs: readonly Array64[] = [];

  constructor(kind: DpmKind, setup: SamplerSetup) {
    const path = solverPath(kind, setup.schedule, setup.steps, setup.settings);
    this.sampling = solverSchedule(path);
    this.#kind = kind;
    this.#setup = setup;
    this.#sigmas = path.sigmas;
  }

  advance(step: SamplerStep): Array64 {
    const i = step.index;
    const { x0, eps } = this.#setup.estimate(step, this.sampling.abars[i]!);
    const newest = this.#kind === "dpmsolver" ? eps : x0;
    this.#outputs = [newest, ...this.#outputs].slice(0, this.#setup.settings.solver_order);
    const d = this.#differences(i, Math.min(this.#order(i), this.#outputs.length));
    const [sigma, target] = [this.#sigmas[i]!, this.#sigmas[i + 1]!];
    const h = logRatio(target) - logRatio(sigma);
    const [alpha, s] = signalAndNoise(sigma);
    const [alphaNext, sNext] = signalAndNoise(target);
    if (this.#kind === "dpmsolver") return combine([alphaNext / alpha, step.state], [-sNext, this.#integral(d, h)]);
    if (this.#kind === "dpmsolver++") return combine([sNext / s, step.state], [-alphaNext, this.#integral(d, -h)]);
    const x = combine([(sNext / s) * Math.exp(-h), step.state], [-alphaNext, this.#integral(d, -2 * h)]);
    return sNext === 0 ? x : combine([1, x], [sNext * Math.sqrt(-Math.expm1(-2 * h)), this.#setup.noise(x)]);
  }

  #order(i: number): number {
    const { settings } = this.#setup;
    const steps = this.sampling.timesteps.length;
    const few = settings.lower_order_final && steps < FEW_STEPS;
    if (i === steps - 1 && (settings.euler_at_final || few || this.#sigmas.at(-1) === 0)) return 1;
    return i === steps - 2 && few ? Math.min(settings.solver_order, 2) : settings.solver_order;
  }

  /** D_0 to D_{order-1}, in units of the next step. */
  #differences(i: number, order: number): readonly Array64[] {
    const m = this.#outputs;
    if (order === 1) return m.slice(0, 1);
    const ratios = this.#sigmas
      .slice(i - order + 1, i + 2)
      .map(logRatio)
      .reverse();
    const h = ratios[0]! - ratios[1]!;
    const r0 = (ratios[1]! - ratios[2]!) / h;
    const first = quotient(m[0]!, m[1]!, r0);
    if (order === 2) return [m[0]!, first];
    const r1 = (ratios[2]! - ratios[3]!) / h;
    const bend = quotient(first, quotient(m[1]!, m[2]!, r1), r0 + r1);
    return [m[0]!, combine([1, first], [r0, bend]), bend];
  }

  /** E D_0 + g_1 D_1 + g_2 D_2, as far as there are any. */
  #integral(d: readonly Array64[], z: number): Array64 {
    const e = Math.expm1(z);
    if (d.length === 1) return combine([e, d[0]!]);
    if (d.length === 2 && this.#setup.settings.solver_type !== "heun") return combine([e, d[0]!], [0.5 * e, d[1]!]);
    const terms: [number, Array64][] = [
      [e, d[0]!],
      [e / z - 1, d[1]!],
    ];
    if (d.length > 2) terms.push([(e - z) / z ** 2 - 0.5, d[2]!]);
    return combine(...terms);
  }
}

/** Raises an `UnsupportedError` for settings with which the method divides by 0, or that it does not have. */
export function makeDpmSolver(kind: DpmKind, setup: SamplerSetup): Sampler {
  if (kind === "dpmsolver" && setup.settings.final_sigmas_type === "zero") {
    throw new UnsupportedError(mismatch("sampler 'dpmsolver'", "final_sigmas_type sigma_min", "zero", "choose dpmsolver++"));
  }
  if (kind === "sde-dpmsolver++" && setup.settings.solver_order === 3) {
    throw new UnsupportedError(mismatch("sampler 'sde-dpmsolver++'", "solver_order 1 or 2", 3, "choose dpmsolver++"));
  }
  return new DpmSolver(kind, setup);
}
