/** A pipeline against a bundle's vectors: `quad verify` in JavaScript. */

import { sha256 } from "../bundle/digest.js";
import { QuadError } from "../core/errors.js";
import { TEXT_ENCODER } from "../core/slots.js";
import type { NoiseSchedule } from "../core/task.js";
import { type Float, sameShape, type Tensor } from "../core/tensor.js";
import { quoted } from "../core/text.js";
import { Generator } from "../noise/generator.js";
import type { CallOptions } from "../pipeline/call_options.js";
import type { QuadPipeline } from "../pipeline/pipeline.js";
import { planSampling } from "../samplers/run.js";
import { blockMeans, distance } from "./block_means.js";
import {
  type CallVector,
  type ConformanceVectors,
  type NoiseVector,
  type PictureVector,
  readVectors,
  type SamplerVector,
  type TextVector,
} from "./vectors.js";

/** One vector and what came of it: how far the answer is from it, infinite where there is none or it has another shape. */
export interface Check {
  readonly kind: "noise" | "text" | "call" | "sampler" | "picture";
  readonly name: string;
  readonly distance: number;
  readonly tolerance: number;
  readonly passes: boolean;
  /** In place of an answer. */
  readonly error: string;
}

interface Trial {
  readonly kind: Check["kind"];
  readonly name: string;
  readonly tolerance: number;
  readonly away: () => Promise<number>;
}

/** Every vector against the pipeline's own answer; the pipeline's adapters should be as they were opened. */
export async function verify(pipe: QuadPipeline, onCheck?: (check: Check) => void): Promise<readonly Check[]> {
  const conformance = await readVectors(pipe.bundle);
  const checks: Check[] = [];
  for (const trial of trials(pipe, conformance)) {
    const check = await tried(trial);
    onCheck?.(check);
    checks.push(check);
  }
  return checks;
}

/** An answer that raises is one that fails. */
async function tried({ kind, name, tolerance, away }: Trial): Promise<Check> {
  try {
    const found = await away();
    return { kind, name, distance: found, tolerance, passes: found <= tolerance, error: "" };
  } catch (error) {
    if (!(error instanceof QuadError)) throw error;
    return { kind, name, distance: Infinity, tolerance, passes: false, error: error.message };
  }
}

function* trials(pipe: QuadPipeline, conformance: ConformanceVectors): globalThis.Generator<Trial> {
  const { noise, texts, calls, samplers, pictures, grid } = conformance.vectors;
  for (const vector of noise) {
    yield { kind: "noise", name: `seed ${vector.seed}`, tolerance: 0, away: () => noiseDistance(vector) };
  }
  for (const vector of texts) {
    yield { kind: "text", name: quoted(vector.prompt), tolerance: vector.tolerance, away: () => textDistance(pipe, vector, grid) };
  }
  for (const vector of calls) {
    const name = vector.adapter === undefined ? vector.graph : `${vector.graph} with ${vector.adapter}`;
    yield { kind: "call", name, tolerance: vector.tolerance, away: () => callDistance(pipe, vector, conformance) };
  }
  for (const vector of samplers) {
    const { schedule } = pipe.manifest;
    const away = (): Promise<number> => samplerDistance(vector, schedule, conformance);
    yield { kind: "sampler", name: vector.name, tolerance: vector.tolerance, away };
  }
  for (const vector of pictures) {
    yield { kind: "picture", name: vector.task, tolerance: vector.tolerance, away: () => pictureDistance(pipe, vector, conformance) };
  }
}

/** 0 for the same bits. */
async function noiseDistance(vector: NoiseVector): Promise<number> {
  const values = Float32Array.from(new Generator(vector.seed).standardNormal(vector.shape));
  return (await sha256(new Uint8Array(values.buffer))) === vector.sha256 ? 0 : Infinity;
}

/** Of the hidden states; infinite where a token or a weight is another. */
async function textDistance(pipe: QuadPipeline, vector: TextVector, grid: number): Promise<number> {
  const tokens = pipe.stages.tokens(vector.prompt, vector.prompt_syntax === "plain" ? "plain" : "a1111");
  const own = JSON.stringify(tokens.chunks.map((chunk) => [chunk.ids, chunk.weights]));
  if (own !== JSON.stringify(vector.ids.map((ids, index) => [ids, vector.weights[index]]))) return Infinity;
  const encoder = pipe.graph(TEXT_ENCODER);
  const hidden = await encoder.loaded(async () => {
    await encoder.bind(await pipe.mix(new Map()));
    return pipe.stages.hidden(tokens);
  });
  return distance(vector.values, blockMeans({ ...hidden, shape: [1, ...hidden.shape] }, grid));
}

async function callDistance(pipe: QuadPipeline, vector: CallVector, conformance: ConformanceVectors): Promise<number> {
  const graph = pipe.graph(vector.graph);
  const mix = await pipe.mix(new Map(vector.adapter === undefined ? [] : [[vector.adapter, 1]]));
  const inputs = new Map(Object.entries(vector.inputs).map(([name, tensor]): [string, Tensor] => [name, conformance.tensor(tensor)]));
  const output = await graph.loaded(async () => {
    await graph.bind(mix);
    return graph.run(inputs);
  });
  return distance(vector.values, blockMeans(output, conformance.vectors.grid));
}

/** Largest difference of one number of one state; infinite where it calls at other timesteps. */
export async function samplerDistance(vector: SamplerVector, schedule: NoiseSchedule, conformance: ConformanceVectors): Promise<number> {
  const rng = new Generator(vector.seed);
  const outputs = new Generator(vector.output_seed);
  const drawn = (from: Generator): Float => ({ data: Float32Array.from(from.standardNormal(vector.shape)), shape: vector.shape });
  const timesteps: number[] = [];
  const states: number[] = [];
  const first = drawn(rng);
  await planSampling(vector.spec, schedule, rng).run(
    async (_, timestep) => {
      timesteps.push(timestep);
      return drawn(outputs);
    },
    first,
    (_, __, state) => {
      states.push(...state.data);
    },
  );
  const expected = conformance.tensor<Float32Array>(vector.states);
  const near = (timestep: number, index: number): boolean => Math.abs(timestep - vector.timesteps[index]!) <= 1e-6 * (1 + timestep);
  const isSame = timesteps.length === vector.timesteps.length && timesteps.every(near);
  if (!isSame || !sameShape([timesteps.length, ...vector.shape], expected.shape)) return Infinity;
  return states.reduce((largest, value, index) => Math.max(largest, Math.abs(value - expected.data[index]!)), 0);
}

async function pictureDistance(pipe: QuadPipeline, vector: PictureVector, conformance: ConformanceVectors): Promise<number> {
  const pictureOf = (name: string | undefined): CallOptions["image"] => {
    if (name === undefined) return undefined;
    const { data, shape } = conformance.tensor<Uint8Array>(name);
    return { data, width: shape[1]!, height: shape[0]! };
  };
  const { task, prompt, seed, steps } = vector;
  const output = await pipe.run(prompt, {
    task,
    seed,
    num_inference_steps: steps,
    image: pictureOf(vector.image),
    mask_image: pictureOf(vector.mask),
    output_type: "np",
  });
  return distance(vector.values, blockMeans(channelsFirst(output.images[0] as Float), conformance.vectors.grid));
}

/** `(1, H, W, 3)` as `(1, 3, H, W)`. */
function channelsFirst({ data, shape }: Float): Float {
  const [, height, width, channels] = shape as readonly [number, number, number, number];
  const plane = width * height;
  const first = new Float32Array(data.length);
  for (let i = 0; i < data.length; i++) first[(i % channels) * plane + Math.floor(i / channels)] = data[i]!;
  return { data: first, shape: [1, channels, height, width] };
}
