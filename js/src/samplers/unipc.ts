/**
 * UniPC: a multistep predictor, and each state corrected with the network's answer at it before the next step is taken.
 *
 *     symbol       here            meaning
 *     lambda       `logRatio`      log(alpha / s)
 *     h            `h`             lambda_next - lambda
 *     m            `outputs`       estimated clean latents, newest first
 *     r_k          `ratios`        (lambda_k - lambda) / h of earlier steps, and 1 for the next
 *     D_k          `slopes`        (m_k - m_0) / r_k
 *     B(h)         `bh`            -h (bh1) or e^{-h} - 1 (bh2)
 *     rho          `rhos`          weights of the D_k: solve R rho = b, R_jk = r_k^j, b_j = j! h phi_{j+1}(-h) / B(h)
 *
 *     x_next = (s_next / s) x - alpha_next ((e^{-h} - 1) m_0 + B(h) sum rho_k D_k)
 *
 * Source: Zhao et al. 2023, Eqs. 3 to 9 and appendix (data prediction); numbers as diffusers' UniPCMultistepScheduler with `predict_x0`.
 */

import { mismatch, UnsupportedError } from "../core/errors.js";
import { type Array64, combine, quotient } from "./arrays.js";
import { type Sampler, type SamplerSetup, type SamplerStep, type SamplingSchedule, solverSchedule } from "./contract.js";
import { logRatio, signalAndNoise } from "./dpmsolver.js";
import { solverPath } from "./schedule.js";

/** b_1 to b_order. */
function rightSide(z: number, bh: number, order: number): number[] {
  const terms: number[] = [];
  let [factorial, phi] = [1, Math.expm1(z) / z - 1];
  for (let j = 1; j <= order; j++) {
    terms.push((phi * factorial) / bh);
    factorial *= j + 1;
    phi = phi / z - 1 / factorial;
  }
  return terms;
}

/** The weights of as many slopes as there are ratios; one alone is 1/2, as in diffusers. */
function weightsOf(ratios: readonly number[], z: number, bh: number): readonly number[] {
  if (ratios.length === 1) return [0.5];
  const matrix = ratios.map((_, power) => ratios.map((ratio) => ratio ** power));
  return solved(matrix, rightSide(z, bh, ratios.length));
}

/** The solution of a small square system, by elimination with pivots. */
function solved(matrix: readonly (readonly number[])[], right: readonly number[]): number[] {
  const rows = matrix.map((row, i) => [...row, right[i]!]);
  const count = rows.length;
  for (let column = 0; column < count; column++) {
    const pivot = rows.slice(column).reduce((best, row) => (Math.abs(row[column]!) > Math.abs(best[column]!) ? row : best));
    const place = rows.indexOf(pivot);
    [rows[column], rows[place]] = [pivot, rows[column]!];
    for (const row of rows.slice(column + 1)) {
      const factor = row[column]! / pivot[column]!;
      for (let k = column; k <= count; k++) row[k]! -= factor * pivot[k]!;
    }
  }
  const solution = Array<number>(count).fill(0);
  for (let i = count - 1; i >= 0; i--) {
    const known = solution.reduce((sum, value, k) => (k > i ? sum + rows[i]![k]! * value : sum), 0);
    solution[i] = (rows[i]![count]! - known) / rows[i]![i]!;
  }
  return solution;
}

/** Order up to 3 (the corrector one more), deterministic; keeps the last answers and the state it last stepped from. */
class UniPc implements Sampler {
  readonly sampling: SamplingSchedule;
  readonly #setup: SamplerSetup;
  readonly #sigmas: readonly number[];
  #outputs: readonly Array64[] = [];
  #begun: Array64 | undefined;
  #order = 1;

  constructor(setup: SamplerSetup) {
    const path = solverPath("unipc", setup.schedule, setup.steps, setup.settings);
    this.sampling = solverSchedule(path);
    this.#setup = setup;
    this.#sigmas = path.sigmas;
  }

  advance(step: SamplerStep): Array64 {
    const i = step.index;
    const { settings } = this.#setup;
    const { x0 } = this.#setup.estimate(step, this.sampling.abars[i]!);
    const isCorrected = this.#begun !== undefined && !settings.disable_corrector.includes(i - 1);
    const x = isCorrected ? this.#step(i - 1, this.#begun!, this.#order, x0) : step.state;
    this.#outputs = [x0, ...this.#outputs].slice(0, settings.solver_order);
    const room = settings.lower_order_final ? this.sampling.timesteps.length - i : settings.solver_order;
    this.#order = Math.min(settings.solver_order, room, this.#outputs.length);
    this.#begun = x;
    return this.#step(i, x, this.#order, undefined);
  }

  /** Step i from x, with `order` known outputs; `answer` is the one at its end, where the corrector has it. */
  #step(i: number, x: Array64, order: number, answer: Array64 | undefined): Array64 {
    const m = this.#outputs;
    const newest = m[0]!;
    const here = logRatio(this.#sigmas[i]!);
    const h = logRatio(this.#sigmas[i + 1]!) - here;
    const [, s] = signalAndNoise(this.#sigmas[i]!);
    const [alphaNext, sNext] = signalAndNoise(this.#sigmas[i + 1]!);
    const ratios = Array.from({ length: order - 1 }, (_, k) => (logRatio(this.#sigmas[i - k - 1]!) - here) / h);
    const slopes = ratios.map((ratio, k) => quotient(m[k + 1]!, newest, ratio));
    if (answer !== undefined) {
      ratios.push(1);
      slopes.push(quotient(answer, newest, 1));
    }
    const terms: [number, Array64][] = [[Math.expm1(-h), newest]];
    if (slopes.length) {
      const bh = this.#setup.settings.solver_type === "bh1" ? -h : Math.expm1(-h);
      const rhos = weightsOf(ratios, -h, bh);
      terms.push(...slopes.map((slope, k) => [bh * rhos[k]!, slope] as [number, Array64]));
    }
    return combine([sNext / s, x], [-alphaNext, combine(...terms)]);
  }
}

/** Raises an `UnsupportedError` for a last step of higher order that ends without noise, where it divides by 0. */
export function makeUniPc(setup: SamplerSetup): Sampler {
  const { settings } = setup;
  if (settings.final_sigmas_type === "zero" && settings.solver_order > 1 && !settings.lower_order_final) {
    throw new UnsupportedError(mismatch("sampler 'unipc'", "lower_order_final, or final_sigmas_type sigma_min", "neither", "set one"));
  }
  return new UniPc(setup);
}
