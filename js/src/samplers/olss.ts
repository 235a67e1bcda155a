/**
 * OLSS: each state is a weighted sum of the first noise and all network outputs so far, with weights that a build has solved.
 *
 * Source: Duan et al. 2023 (arXiv 2305.14677), Eqs. 9-12; docs/method.md section 6.
 */

import { InputError, mismatch, UsageError } from "../core/errors.js";
import type { OlssTable, SamplerSpec } from "../core/sampling.js";
import { shown } from "../core/text.js";
import { type Array64, combine } from "./arrays.js";
import { preservingSchedule, type Sampler, type SamplerSetup } from "./contract.js";

/** Deterministic; keeps x_T and every output. */
export function makeOlss(spec: SamplerSpec, setup: SamplerSetup): Sampler {
  const table = checkedTable(spec, setup.schedule.steps);
  let noise: Array64;
  const outputs: Array64[] = [];
  return {
    sampling: preservingSchedule(setup.schedule, table.timesteps),
    advance(step) {
      if (step.index === 0) noise = step.state;
      outputs.push(step.output);
      const weights = table.v[step.index]!;
      return combine([table.w[step.index]!, noise], ...outputs.map((output, k) => [weights[k]!, output] as const));
    },
  };
}

/** The sampler's table, when it is there, whole, and made for this number of steps. */
function checkedTable(spec: SamplerSpec, most: number): OlssTable {
  const table = spec.olss;
  const way = "rebuild the adapter";
  if (table === null) throw new InputError(mismatch("sampler 'olss'", "a solved table", "none", way));
  const steps = table.timesteps.length;
  if (steps !== spec.steps) {
    const next = "ask for that number or another sampler";
    throw new UsageError(mismatch("sampler 'olss'", `${steps} steps, as solved`, spec.steps, next));
  }
  const rows = table.v.map((row) => row.length);
  if (!steps || table.w.length !== steps || rows.length !== steps || rows.some((row, index) => row !== index + 1)) {
    const found = `${table.w.length} and ${shown(rows)}`;
    throw new InputError(mismatch("olss table", `${steps} weights and rows of 1 to ${steps}`, found, way));
  }
  if (table.timesteps.some((timestep) => timestep < 0 || timestep >= most)) {
    throw new InputError(mismatch("olss table", `timesteps 0 to ${most - 1}`, shown(table.timesteps), way));
  }
  return table;
}
