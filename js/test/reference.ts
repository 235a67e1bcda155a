/** The bundle and Python's answers that a test is given: `QUAD_TEST_BUNDLE` and `QUAD_TEST_REFERENCE`, see `tests/runtime/javascript_reference.py`. */

import { readFileSync } from "node:fs";
import { readSafetensors } from "../src/bundle/safetensors.js";
import type { Tensor } from "../src/core/tensor.js";

/** Ids, weights and notes of a prompt, or the error. */
export interface TextAnswer {
  readonly prompt: string;
  readonly syntax: "a1111" | "plain";
  readonly ids?: readonly (readonly number[])[];
  readonly weights?: readonly (readonly number[])[];
  readonly notes?: readonly string[];
  readonly error?: string;
}

export interface Reference {
  readonly noise: readonly { readonly seed: string; readonly sha256: string }[];
  readonly texts: readonly TextAnswer[];
  readonly clip: readonly TextAnswer[];
  readonly mixes: readonly {
    readonly weights: Readonly<Record<string, number>>;
    readonly digests?: Readonly<Record<string, string>>;
    readonly notes?: readonly string[];
    readonly error?: string;
  }[];
  readonly samplers: readonly unknown[];
  readonly sized: readonly Record<string, unknown>[];
  readonly refusals: readonly { readonly call: Record<string, unknown>; readonly error: string | null; readonly kind?: string }[];
}

export const bundlePath = process.env.QUAD_TEST_BUNDLE;
const folder = process.env.QUAD_TEST_REFERENCE;

export const reference = folder === undefined ? undefined : (JSON.parse(readFileSync(`${folder}/reference.json`, "utf8")) as Reference);

/** Pictures of many sizes, and what Python makes of them. */
export function referencePictures(): ReadonlyMap<string, Tensor> {
  return readSafetensors("reference", new Uint8Array(readFileSync(`${folder}/reference.safetensors`))).tensors;
}

/** CLIP's own tokenizer. */
export function clipTokenizer(): Uint8Array {
  return new Uint8Array(readFileSync(`${folder}/clip.json`));
}

/** The bundle's first adapter as a pack. */
export const packPath = folder === undefined ? undefined : `${folder}/first.qpack`;
