/** Hidden states of a prompt, with the weights of its tokens; as `quad.runtime.conditioning.text_features`. */

import { type Float, type Tensor, zeros } from "../core/tensor.js";
import type { Runnable } from "../engine/graph.js";
import type { Chunk, PromptTokens } from "./prompt_chunks.js";

/** A mean below this share of the RMS is rounding. */
const LEAST_MEAN = 1e-5;

/** The hidden states of a prompt's chunks one after another, `(1, context, D)`; rows of zeros fill up what a shorter prompt leaves. */
export async function textFeatures(encoder: Runnable, prompt: PromptTokens, context: number, signal?: AbortSignal): Promise<Float> {
  const hidden: Float[] = [];
  for (const chunk of prompt.chunks) hidden.push(emphasised(await encoder.run(inputsOf(encoder, chunk), signal), chunk.weights));
  const width = hidden[0]!.shape[2]!;
  const rows = hidden.reduce((sum, part) => sum + part.shape[1]!, 0);
  const all = zeros([1, Math.max(rows, context), width]);
  let place = 0;
  for (const part of hidden) {
    all.data.set(part.data, place);
    place += part.data.length;
  }
  return all;
}

/** The inputs of the graph for a chunk: vectors too where it takes them. */
function inputsOf(encoder: Runnable, chunk: Chunk): ReadonlyMap<string, Tensor> {
  const ids = { data: BigInt64Array.from(chunk.ids, BigInt), shape: [1, chunk.ids.length] };
  const shape = encoder.inputs.get("embeddings")?.map((size) => size ?? 1);
  if (shape === undefined) return new Map([["input_ids", ids]]);
  const embeddings = chunk.vectors === undefined ? zeros(shape) : { data: chunk.vectors, shape };
  return new Map<string, Tensor>([
    ["input_ids", ids],
    ["embeddings", embeddings],
  ]);
}

/**
 * Each token's hidden state times its weight, and all of them scaled so that their mean is what it was; `hidden` itself where all weights
 * are 1. Source: the rule of AUTOMATIC1111's stable-diffusion-webui, "Emphasis: Original".
 */
export function emphasised(hidden: Float, weights: readonly number[]): Float {
  if (weights.every((weight) => weight === 1)) return hidden;
  const width = hidden.shape[2]!;
  const before = Float64Array.from(hidden.data);
  const after = before.map((value, place) => value * weights[Math.floor(place / width)]!);
  const mean = (values: Float64Array): number => values.reduce((sum, value) => sum + value, 0) / values.length;
  const least = LEAST_MEAN * Math.sqrt(mean(before.map((value) => value * value)));
  const [was, is] = [mean(before), mean(after)];
  const scale = Math.min(Math.abs(was), Math.abs(is)) > least ? was / is : 1;
  return { data: Float32Array.from(after, (value) => value * scale), shape: hidden.shape };
}
