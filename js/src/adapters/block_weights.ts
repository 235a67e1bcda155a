/**
 * Weights of an adapter that differ from block to block, as diffusers' `set_adapters` takes them.
 *
 * A number is for all of a network; `{unet: {down: 0.5, mid: 1, up: {block_1: [0.2, 0.4]}}, text_encoder: 0.8}` is for its parts. Blocks and
 * layers that are not named have 1. Source: diffusers, "Load LoRAs for inference".
 */

import { mismatch, UsageError } from "../core/errors.js";
import { type SlotTable, TEXT_ENCODER, UNET } from "../core/slots.js";
import { general, quoted, shown } from "../core/text.js";

type Blocks = number | Readonly<Record<string, number | readonly number[]>>;

/** A weight as a caller writes it. */
export type WeightInput =
  | number
  | BlockWeights
  | { readonly unet?: number | { readonly down?: Blocks; readonly mid?: number; readonly up?: Blocks }; readonly text_encoder?: number };

export type Weight = number | BlockWeights;

const EXPECTED = 'numbers, as in {"unet": {"down": 0.5, "mid": 1, "up": {"block_1": [0.2, 0.4]}}, "text_encoder": 0.8}';
const BLOCK = /^block_(0|[1-9][0-9]{0,2})$/;
const BLOCK_PATH = /^((?:down|up)_blocks\.(?:[0-9]+\.)?|mid_block\.)/;

/** The weight of each part: prefix of a module path -> weight. The longest prefix that fits rules; 1 where none does. */
export class BlockWeights {
  readonly #byPrefix: readonly (readonly [string, number])[];

  constructor(byPrefix: readonly (readonly [string, number])[]) {
    this.#byPrefix = byPrefix;
  }

  /** The weight at one slot. */
  at(path: string): number {
    let [longest, chosen] = [-1, 1];
    for (const [prefix, weight] of this.#byPrefix) {
      if (!`${path}.`.startsWith(prefix) || prefix.length < longest) continue;
      chosen = prefix.length === longest ? Math.max(chosen, weight) : weight;
      longest = prefix.length;
    }
    return chosen;
  }

  /** The blocks that were named and hold none of these slots. */
  unmatched(paths: readonly string[]): string[] {
    const blocks = new Set(this.#byPrefix.flatMap(([prefix]) => BLOCK_PATH.exec(prefix)?.[1] ?? []));
    return [...blocks].filter((block) => !paths.some((path) => `${path}.`.startsWith(block)));
  }

  /** Whether anything of the adapter is used. */
  get isUsed(): boolean {
    return this.#byPrefix.some(([, weight]) => weight !== 0) || !this.#byPrefix.some(([prefix]) => prefix === "");
  }
}

/** The weight of an adapter at one slot. */
export function weightAt(weight: Weight, path: string): number {
  return weight instanceof BlockWeights ? weight.at(path) : weight;
}

/** Whether a weight leaves anything of an adapter. */
export function isUsed(weight: Weight): boolean {
  return weight instanceof BlockWeights ? weight.isUsed : weight !== 0;
}

/** A weight as notes show it. */
export function weightText(weight: Weight): string {
  return weight instanceof BlockWeights ? "by block" : general(weight);
}

/** The largest magnitude of an adapter's weight at any slot. */
export function largestWeight(weight: Weight, table: SlotTable): number {
  if (!(weight instanceof BlockWeights)) return Math.abs(weight);
  return table.slots.reduce((largest, slot) => Math.max(largest, Math.abs(weight.at(slot.path))), 0);
}

/** Adapter name -> weight; one for all, or one each. Raises a `UsageError` for a name twice, or a weight that is none. */
export function adapterWeights(
  names: readonly string[],
  weights?: WeightInput | readonly WeightInput[] | null,
): ReadonlyMap<string, Weight> {
  const listed = isList(weights) ? weights : names.map(() => weights ?? 1);
  const finite = listed.every((weight) => typeof weight !== "number" || Number.isFinite(weight));
  if (listed.length !== names.length || new Set(names).size !== names.length || names.some((name) => typeof name !== "string") || !finite) {
    const found = `${quoted(names)}, ${quoted(listed)}`;
    throw new UsageError(mismatch("set_adapters", "each name once, with one finite weight each", found, "mend the call"));
  }
  return new Map(names.map((name, index) => [name, readWeight(listed[index])]));
}

function isList(weights: unknown): weights is readonly WeightInput[] {
  return Array.isArray(weights) || ArrayBuffer.isView(weights);
}

function readWeight(value: unknown): Weight {
  if (value instanceof BlockWeights) return value;
  if (typeof value !== "object" || value === null) return checked(value, "weight");
  const parts: [string, number][] = [];
  for (const [network, scale] of Object.entries(value)) {
    if (network === TEXT_ENCODER) parts.push([`${TEXT_ENCODER}.`, checked(scale, network)]);
    else if (network === UNET && typeof scale === "object" && scale !== null) parts.push(...unetParts(scale));
    else if (network === UNET) parts.push(["", checked(scale, network)]);
    else throw odd(network);
  }
  // A number for the U-Net is not one for the text encoder.
  const prefixes = parts.map(([prefix]) => prefix);
  if (prefixes.includes("") && !prefixes.includes(`${TEXT_ENCODER}.`)) parts.push([`${TEXT_ENCODER}.`, 1]);
  return new BlockWeights(parts);
}

function* unetParts(value: object): Generator<[string, number]> {
  for (const [part, scale] of Object.entries(value)) {
    if (part === "mid") yield ["mid_block.", checked(scale, "mid")];
    else if (part === "down" || part === "up") yield* blockParts(`${part}_blocks.`, scale);
    else throw odd(`unet, ${part}`);
  }
}

function* blockParts(prefix: string, value: unknown): Generator<[string, number]> {
  if (typeof value !== "object" || value === null) {
    yield [prefix, checked(value, prefix)];
    return;
  }
  for (const [block, scale] of Object.entries(value)) {
    const number = BLOCK.exec(block)?.[1];
    if (number === undefined) throw odd(`${prefix}${block}`);
    const inside = `${prefix}${number}.`;
    if (!Array.isArray(scale)) {
      yield [inside, checked(scale, inside)];
      continue;
    }
    for (const [layer, weight] of scale.entries()) {
      for (const kind of ["attentions", "resnets"]) yield [`${inside}${kind}.${layer}.`, checked(weight, inside)];
    }
  }
}

function checked(value: unknown, where: string): number {
  if (typeof value !== "number" || !Number.isFinite(value)) throw odd(`${where}: ${shown(value)}`);
  return value;
}

function odd(found: string): UsageError {
  return new UsageError(mismatch("adapter weights", EXPECTED, found, "mend the call"));
}
