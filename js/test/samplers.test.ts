/** A network that knows the clean latent: every sampler ends at it, whatever the steps, the schedule and the prediction. */

import { describe, expect, test } from "vitest";
import { UnsupportedError, UsageError } from "../src/core/errors.js";
import type { SamplerSpec } from "../src/core/sampling.js";
import { type NoiseSchedule, noiseSchedule } from "../src/core/task.js";
import type { Float } from "../src/core/tensor.js";
import { Generator } from "../src/noise/generator.js";
import { namedSampler, SAMPLER_NAMES } from "../src/samplers/names.js";
import { addNoise, planSampling } from "../src/samplers/run.js";
import { alphasCumprod, sigmasOf } from "../src/samplers/schedule.js";

const OWN: SamplerSpec = { kind: "ddim", steps: 4, olss: null, settings: undefined };
const SHAPE = [1, 2, 2, 2];
const SCHEDULES: Readonly<Record<string, NoiseSchedule>> = {
  "rescaled, v": noiseSchedule({}, "$"),
  "stable diffusion, eps": noiseSchedule({ beta_schedule: "scaled_linear", rescale_zero_snr: false, prediction: "epsilon" }, "$"),
  "linear, v": noiseSchedule({ beta_schedule: "linear", rescale_zero_snr: false }, "$"),
};

function drawn(seed: number): Float {
  return { data: Float32Array.from(new Generator(seed).standardNormal(SHAPE)), shape: SHAPE };
}

/** Runs a sampler on the network that knows; how far from the clean latent it ends. */
async function missed(name: string, steps: number, schedule: NoiseSchedule): Promise<number> {
  const clean = drawn(1);
  const sampling = planSampling(namedSampler(`${name}:${steps}`, OWN, {}), schedule, new Generator(2));
  let call = sampling.first;
  const end = await sampling.run(async (x) => {
    const abar = sampling.sampling.abars[call++]!;
    const [signal, noise] = [Math.sqrt(abar), Math.sqrt(1 - abar)];
    const eps = x.data.map((value, i) => (value - signal * clean.data[i]!) / noise);
    return { ...x, data: schedule.prediction === "epsilon" ? eps : eps.map((value, i) => signal * value - noise * clean.data[i]!) };
  }, drawn(3));
  return end.data.reduce((most, value, i) => Math.max(most, Math.abs(value - clean.data[i]!)), 0);
}

describe.each(Object.entries(SCHEDULES))("%s", (_, schedule) => {
  test.each(SAMPLER_NAMES)("%s", async (name) => {
    for (const steps of [1, 2, 3, 7]) {
      const away = await missed(name, steps, schedule).catch((error: unknown) => {
        if (error instanceof UnsupportedError || error instanceof UsageError) return 0;
        throw error;
      });
      // Some end at the noise of timestep 0; pndm combines outputs of several states, too.
      const left = 4 * Math.sqrt(1 - alphasCumprod(schedule)[0]!) + 0.02;
      expect(away, `${steps} steps`).toBeLessThan(name === "pndm" ? 0.5 : left);
    }
  });
});

test("signal shares fall, and end at nothing where the schedule is rescaled", () => {
  for (const schedule of Object.values(SCHEDULES)) {
    const shares = alphasCumprod(schedule);
    expect(shares.slice(1).every((share, i) => share < shares[i]!)).toBe(true);
    expect(shares.at(-1) === 0).toBe(schedule.rescale_zero_snr);
    expect(sigmasOf(schedule).every(Number.isFinite)).toBe(true);
  }
});

test("a run that begins at a latent begins at it with that much noise", async () => {
  const schedule = SCHEDULES["stable diffusion, eps"]!;
  const x0 = drawn(4);
  const sampling = planSampling(namedSampler("ddim:10", OWN, {}), schedule, new Generator(0), { x0, strength: 0.3 });
  expect(sampling.calls).toBe(3);
  let first: Float | undefined;
  await sampling.run(async (x) => (first ??= x), drawn(5));
  const expected = Float32Array.from(addNoise(x0.data, drawn(5).data, sampling.sampling.abars[sampling.first]!));
  expect(first!.data).toEqual(expected);
});

test("what cannot be run is refused", () => {
  const schedule = SCHEDULES["rescaled, v"]!;
  const plan =
    (text: string, strength = 1) =>
    () =>
      planSampling(namedSampler(text, OWN, {}), schedule, new Generator(0), { strength });
  expect(plan("euler:1001")).toThrow("sampler 'euler': expected 1 to 1000 steps, found 1001; ask for another number of steps");
  expect(plan("nonsense")).toThrow(UsageError);
  expect(plan("ddim:4", 0.5)).toThrow("give the latent to begin at");
  expect(plan("pndm:4")).toThrow(UnsupportedError);
});
