/** Hidden states of a prompt, with the weights of its tokens; as `quad.runtime.conditioning.text_features`. */

import { contextLength, type TextSpec } from "../core/manifest.js";
import { concatenate, type Float, type Tensor, zeros } from "../core/tensor.js";
import type { Runnable } from "../engine/graph.js";
import type { Chunk, PromptTokens } from "./prompt_chunks.js";

/** A mean below this share of the RMS is rounding. */
const LEAST_MEAN = 1e-5;

/**
 * The hidden states of a prompt's chunks one after another, rows of zeros for what a shorter prompt leaves, and behind them those of the
 * first chunk's numbers as a whole: `(1, rows, D)`.
 */
export async function textFeatures(encoder: Runnable, prompt: PromptTokens, text: TextSpec, signal?: AbortSignal): Promise<Float> {
  const hidden: Float[] = [];
  let whole: Float | undefined;
  for (const chunk of prompt.chunks) {
    const output = await encoder.run(inputsOf(encoder, chunk), signal);
    hidden.push(emphasised(rowsOf(output, 0, text.length), chunk.weights));
    whole ??= rowsOf(output, text.length, output.shape[1]!);
  }
  const missing = Math.max(contextLength(text) - hidden.length * text.length, 0);
  return concatenate([...hidden, zeros([1, missing, text.hidden]), ...(text.pooled === undefined ? [] : [whole!])]);
}

/** Numbers as rows of a width `(1, rows, width)`, the last filled up with zeros. */
export function filledRows(numbers: Float32Array, width: number): Float {
  const rows = zeros([1, Math.ceil(numbers.length / width), width]);
  rows.data.set(numbers);
  return rows;
}

/** Rows from one on, to another that is no longer among them, of `(1, L, D)`. */
function rowsOf(all: Float, start: number, end: number): Float {
  const width = all.shape[2]!;
  return { data: all.data.subarray(start * width, end * width), shape: [1, end - start, width] };
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
