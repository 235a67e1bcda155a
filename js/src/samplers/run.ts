/** The one loop of all samplers: make the one that a task names, and run it from noise, or from a given latent with noise on it. */

import { BackendError, InputError, mismatch, UsageError } from "../core/errors.js";
import { type SamplerSpec, settingsWith } from "../core/sampling.js";
import type { NoiseSchedule } from "../core/task.js";
import { type Float, isFinite32, sameShape } from "../core/tensor.js";
import { general, shapeText } from "../core/text.js";
import type { Generator } from "../noise/generator.js";
import { type Array64, combine } from "./arrays.js";
import { type Sampler, SamplerSetup, type SamplingSchedule } from "./contract.js";
import { makeDdim } from "./ddim.js";
import { makeDdpm } from "./ddpm.js";
import { makeDpmSolver } from "./dpmsolver.js";
import { makeDpmSolverSde } from "./dpmsolver_sde.js";
import { makeEuler } from "./euler.js";
import { makeHeun } from "./heun.js";
import { makeLcm } from "./lcm.js";
import { makeLms } from "./lms.js";
import { makeOlss } from "./olss.js";
import { makePndm } from "./pndm.js";
import { makeTcd } from "./tcd.js";
import { makeUniPc } from "./unipc.js";

/** The network: x_t float32 and its timestep to the raw output after guidance. */
export type Network = (x: Float, timestep: number) => Promise<Float>;
/** Called after each network call with its index, its timestep and the state it led to. */
export type OnStep = (index: number, timestep: number, x: Float) => void | Promise<void>;

/** Where a run begins, and what is held on its way. Source: Meng et al. 2022 (SDEdit); numbers as diffusers' pipelines. */
export interface Start {
  /** A clean latent that the run begins at, with the first timestep's noise on it; absent: at noise alone. */
  readonly x0?: Float | undefined;
  /** Of n steps, the last min(int(n strength), n) are taken. */
  readonly strength: number;
  /** Called after each network call with the state x_t and the signal share there; what it returns is the state from there on. */
  readonly keep?: ((x: Array64, abar: number) => Array64) | undefined;
}

type Maker = (setup: SamplerSetup, spec: SamplerSpec) => Sampler;

const MAKERS: Readonly<Record<SamplerSpec["kind"], Maker>> = {
  ddim: makeDdim,
  ddpm: makeDdpm,
  pndm: makePndm,
  euler: (setup) => makeEuler("euler", setup),
  "euler-ancestral": (setup) => makeEuler("euler-ancestral", setup),
  heun: makeHeun,
  lms: makeLms,
  "dpmsolver++": (setup) => makeDpmSolver("dpmsolver++", setup),
  "sde-dpmsolver++": (setup) => makeDpmSolver("sde-dpmsolver++", setup),
  "dpmsolver-sde": makeDpmSolverSde,
  dpmsolver: (setup) => makeDpmSolver("dpmsolver", setup),
  unipc: makeUniPc,
  lcm: makeLcm,
  tcd: makeTcd,
  olss: (setup, spec) => makeOlss(spec, setup),
};

/** x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps. Source: Ho et al. 2020, Eq. 4. */
export function addNoise(x0: Float32Array, noise: Float32Array, abar: number): Array64 {
  return combine([Math.sqrt(abar), Float64Array.from(x0)], [Math.sqrt(1 - abar), Float64Array.from(noise)]);
}

/** A sampler from its first call to its last; made once and run once, because the sampler keeps what it computed. */
export class SamplingRun {
  readonly sampling: SamplingSchedule;
  /** Index in the sampler's schedule of the call that it begins with. */
  readonly first: number;
  readonly #sampler: Sampler;
  readonly #start: Start;

  constructor(sampler: Sampler, start: Start, first: number) {
    this.sampling = sampler.sampling;
    this.first = first;
    this.#sampler = sampler;
    this.#start = start;
  }

  /** How often the network is called. */
  get calls(): number {
    return this.sampling.timesteps.length - this.first;
  }

  /** From unit noise x_T to the clean latent x_0; samplers compute in float64, the network sees float32. */
  async run(network: Network, noise: Float, onStep?: OnStep): Promise<Float> {
    const { sampling, first } = this;
    let state = this.#firstState(noise);
    let xt = divided(state, sampling.scales[first]!);
    for (let i = first; i < sampling.timesteps.length; i++) {
      const timestep = sampling.timesteps[i]!;
      const output = await outputOf(network, xt, timestep, noise.shape);
      state = this.#sampler.advance({ index: i, state, xt, output });
      xt = divided(state, sampling.scales[i + 1]!);
      // What is to stay as in the given picture is put back.
      if (this.#start.keep !== undefined) {
        xt = this.#start.keep(xt, sampling.abars[i + 1]!);
        state = xt.map((value) => value * sampling.scales[i + 1]!);
      }
      await onStep?.(i - first, timestep, single(xt, noise.shape));
    }
    return single(xt, noise.shape);
  }

  #firstState(noise: Float): Array64 {
    const { x0 } = this.#start;
    if (x0 === undefined) return Float64Array.from(noise.data, (value) => value * this.sampling.initScale);
    if (!sameShape(x0.shape, noise.shape)) {
      const way = "encode a picture of the graph's size";
      throw new InputError(mismatch("latent to begin at", `shape ${shapeText(noise.shape)}`, shapeText(x0.shape), way));
    }
    const scale = this.sampling.scales[this.first]!;
    return addNoise(x0.data, noise.data, this.sampling.abars[this.first]!).map((value) => value * scale);
  }
}

/** The run of the sampler that a task names. Raises a `UsageError` for steps, a strength or a start that it cannot take. */
export function planSampling(spec: SamplerSpec, schedule: NoiseSchedule, rng: Generator, start: Start = { strength: 1 }): SamplingRun {
  if (spec.kind === "olss" && (start.x0 !== undefined || start.keep !== undefined)) {
    const expected = "a run from noise, for which its table was solved";
    throw new UsageError(mismatch("sampler 'olss'", expected, "a given latent", "choose another sampler"));
  }
  const setup = new SamplerSetup(schedule, spec.steps, spec.settings ?? settingsWith(), rng);
  const sampler = MAKERS[spec.kind](setup, spec);
  return new SamplingRun(sampler, start, firstCall(sampler.sampling, spec.steps, start));
}

/** Index of the network call that a run begins with. */
function firstCall(sampling: SamplingSchedule, steps: number, start: Start): number {
  const { strength } = start;
  if (!(strength > 0 && strength <= 1)) {
    throw new UsageError(mismatch("strength", "more than 0, at most 1", strength, "choose one in that range"));
  }
  const left = Math.min(Math.trunc(steps * strength), steps);
  if (left < 1) {
    const found = `${steps} steps at strength ${general(strength)}`;
    throw new UsageError(mismatch("strength", "one step at least", found, "choose more steps or a higher strength"));
  }
  if (start.x0 === undefined && left < steps) {
    throw new UsageError(mismatch("strength", "1 where a run begins at noise", strength, "give the latent to begin at"));
  }
  if (sampling.fromStart && left < steps) {
    const expected = "1 with a sampler that begins with Runge-Kutta steps";
    throw new UsageError(mismatch("strength", expected, strength, "choose another sampler"));
  }
  return (steps - left) * sampling.callsPerStep;
}

async function outputOf(network: Network, xt: Array64, timestep: number, shape: readonly number[]): Promise<Array64> {
  const output = await network(single(xt, shape), timestep);
  const where = `network output at timestep ${general(timestep)}`;
  if (!sameShape(output.shape, shape)) {
    throw new BackendError(mismatch(where, `shape ${shapeText(shape)}`, shapeText(output.shape), "rebuild the bundle"));
  }
  if (!isFinite32(output.data)) {
    const way = "use guidance_scale and adapter weights nearer to 1, or check the profile with quad eval";
    throw new BackendError(mismatch(where, "finite numbers", "NaN or infinity", way));
  }
  return Float64Array.from(output.data);
}

function single(values: Array64, shape: readonly number[]): Float {
  return { data: Float32Array.from(values), shape };
}

function divided(values: Array64, divisor: number): Array64 {
  return values.map((value) => value / divisor);
}
