/**
 * Sizes that some models are told beside the prompt, by diffusers' names; as its namesake in Python.
 * Source: Podell et al. 2023 (SDXL), section 2.2.
 */

import { mismatch, UsageError } from "../core/errors.js";
import type { TextSpec } from "../core/manifest.js";
import type { PictureSize } from "../core/picture_size.js";
import { waves } from "../core/sinusoid.js";
import { concatenate, type Float } from "../core/tensor.js";
import { quoted } from "../core/text.js";
import { filledRows } from "./text_features.js";

/** Two whole numbers, rows first. */
export type Pair = readonly [number, number];

const OWN = ["original_size", "crops_coords_top_left", "target_size"] as const;
const NEGATIVE = ["negative_original_size", "negative_crops_coords_top_left", "negative_target_size"] as const;
export const SIZE_NAMES = [...OWN, ...NEGATIVE] as const;
const LARGEST = 2 ** 16;

/** The sizes that a model is told: height and width in pixels; undefined for what diffusers' pipelines say where nobody does. */
export type SizeConditions = Readonly<Partial<Record<(typeof SIZE_NAMES)[number], Pair | undefined>>>;

/** The sizes among the options of a call. */
export function statedSizes(options: SizeConditions): SizeConditions {
  return Object.fromEntries(SIZE_NAMES.map((name) => [name, options[name]]));
}

/** Raises a `UsageError` for what is no two whole numbers from 0 on, and for sizes that are said to a model which is told none. */
export function checkSizes(text: TextSpec, sizes: SizeConditions): void {
  for (const name of SIZE_NAMES) {
    const pair: unknown = sizes[name];
    const isNumber = (value: unknown): boolean => Number.isSafeInteger(value) && (value as number) >= 0 && (value as number) <= LARGEST;
    if (pair !== undefined && !(Array.isArray(pair) && pair.length === 2 && pair.every(isNumber))) {
      throw new UsageError(mismatch(name, `two whole numbers from 0 to ${LARGEST}, rows first`, quoted(pair), "give two"));
    }
  }
  if (text.sizes === undefined && SIZE_NAMES.some((name) => sizes[name] !== undefined)) {
    throw new UsageError(mismatch(OWN.join(", "), "a model that is told sizes", "one that is not", "leave them out"));
  }
}

/** The six numbers of a side, with the prompt or without it: original size, crop, target size. */
export function sizeNumbers(sizes: SizeConditions, size: PictureSize, negative: boolean): readonly number[] {
  const grid: Pair = [size.height, size.width];
  const defaults: readonly Pair[] = [grid, [0, 0], grid];
  return OWN.flatMap((name, index) => (negative ? sizes[NEGATIVE[index]!] : undefined) ?? sizes[name] ?? defaults[index]!);
}

/** Features of a prompt `(1, rows, D)` and, where the model is told sizes, the rows of their embedding behind them. */
export function withSizes(text: TextSpec, features: Float, numbers: readonly number[]): Float {
  return text.sizes === undefined ? features : concatenate([features, filledRows(waves(text.sizes, numbers), text.hidden)]);
}
