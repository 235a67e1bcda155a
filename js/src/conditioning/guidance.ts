/**
 * Classifier-free guidance: what the U-Net is asked at a step, and how its answers become one; as `quad.runtime.conditioning.guidance`.
 *
 * Source: Ho and Salimans 2022; Brooks et al. 2023 (guidance by a picture too); Kynkäänniemi et al. 2024 (guidance in an interval of noise
 * levels alone).
 */

import { mismatch, UsageError } from "../core/errors.js";
import type { TaskSpec } from "../core/task.js";
import { concatenate, type Float, type Tensor } from "../core/tensor.js";
import { quoted } from "../core/text.js";
import type { Shape } from "../engine/engine.js";
import type { Network } from "../samplers/run.js";

type Call = (inputs: ReadonlyMap<string, Tensor>) => Promise<Float>;

/** Shares of the way from noise, 0, to picture, 1, between which guidance counts: `START:END`, or a pair. */
export type IntervalInput = string | readonly number[];

/** Raises a `UsageError` where it is not 0 <= START < END <= 1. */
export function parseInterval(given: IntervalInput): readonly number[] {
  const parts: readonly unknown[] = typeof given === "string" ? given.split(":") : Array.isArray(given) ? given : [];
  const [start, end] = parts.map((part) => (part === "" ? Number.NaN : Number(part))) as [number, number];
  if (parts.length !== 2 || !(start >= 0 && start < end && end <= 1)) {
    const expected = "START:END with 0 <= START < END <= 1";
    throw new UsageError(mismatch("guidance_interval", expected, quoted(given), "0.1:0.9 leaves out both ends"));
  }
  return [start, end];
}

/** Whether guidance counts at a timestep of a model trained on so many. */
export function countsAt(spec: TaskSpec, timestep: number, trainingSteps: number): boolean {
  if (spec.guidance_interval === undefined) return true;
  const [start, end] = spec.guidance_interval as [number, number];
  const share = Math.min(Math.max(1 - timestep / trainingSteps, 0), 1);
  return start <= share && share <= end;
}

/** Whether a run without the prompt is needed: guidance above 1, and that of the picture, if any, at 1 or more. */
export function isGuided(spec: TaskSpec): boolean {
  return spec.guidance > 1 && (spec.image_guidance === undefined || spec.image_guidance >= 1);
}

/** One side of guidance: what follows the latent in the sample, and the hidden states. */
export interface Side {
  readonly beside: Float | undefined;
  readonly text: Float;
}

/** Whether all sides can run at once. */
export function isBatched(inputs: ReadonlyMap<string, Shape>): boolean {
  return inputs.get("sample")?.[0] === null && inputs.get("encoder_hidden_states")?.[0] === null;
}

/** The network with guidance; all sides run at once where the graph's batch axis is dynamic. */
export function guidedNetwork(unet: Call, batched: boolean, guided: readonly Side[], spec: TaskSpec, trainingSteps: number): Network {
  const scale = Math.fround(spec.guidance);
  const pictureScale = Math.fround(spec.image_guidance ?? 1);
  return async (x, t) => {
    const sides = countsAt(spec, t, trainingSteps) ? guided : guided.slice(-1);
    const timestep = { data: Float32Array.of(t), shape: [1] };
    const samples = sides.map(({ beside }) => (beside === undefined ? x : concatenate([x, beside])));
    const call = (sample: Float, text: Float): Promise<Float> =>
      unet(new Map(Object.entries({ sample, timestep, encoder_hidden_states: text })));
    if (batched && sides.length > 1) {
      return combined(split(await call(stacked(samples), stacked(sides.map(({ text }) => text))), sides.length), scale, pictureScale);
    }
    const outputs: Float[] = [];
    for (const [index, { text }] of sides.entries()) outputs.push(await call(samples[index]!, text));
    return combined(outputs, scale, pictureScale);
  };
}

/** One output from those of one, two or three sides, in float32. */
function combined(outputs: readonly Float[], scale: number, pictureScale: number): Float {
  const f = Math.fround;
  const c = outputs.at(-1)!;
  if (outputs.length === 1) return c;
  const u = outputs[0]!.data;
  if (outputs.length === 2) return { ...c, data: c.data.map((value, i) => f(u[i]! + f(scale * f(value - u[i]!)))) };
  const p = outputs[1]!.data;
  return {
    ...c,
    data: c.data.map((value, i) => f(f(u[i]! + f(scale * f(value - p[i]!))) + f(pictureScale * f(p[i]! - u[i]!)))),
  };
}

function stacked(parts: readonly Float[]): Float {
  const size = parts[0]!.data.length;
  const data = new Float32Array(size * parts.length);
  for (const [index, part] of parts.entries()) data.set(part.data, index * size);
  return { data, shape: [parts.length, ...parts[0]!.shape.slice(1)] };
}

function split(all: Float, count: number): readonly Float[] {
  const size = all.data.length / count;
  const shape = [1, ...all.shape.slice(1)];
  return Array.from({ length: count }, (_, index) => ({ data: all.data.slice(index * size, (index + 1) * size), shape }));
}
