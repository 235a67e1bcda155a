/** Slots: the attach points of LoRA weights in a graph; as `quad.core.slots`. */

import { type Decoder, integer, listOf, maybe, oneOf, optional, required, struct, text } from "./decode.js";
import { sizeOf } from "./numbers.js";

export const UNET = "unet";
export const TEXT_ENCODER = "text_encoder";

export type SlotDtype = "float32" | "int16" | "int8";

/** One attach point with two runtime inputs, A `(rank, in, *kernel)` and B `(out, rank)`. */
export interface Slot {
  readonly path: string;
  readonly kind: "linear" | "conv";
  readonly in_features: number;
  readonly out_features: number;
  readonly rank: number;
  readonly dtype: SlotDtype;
  readonly kernel: readonly number[];
  readonly component: string;
  readonly largest: number | undefined;
  /** How many of the rank channels, the last ones, the base's own correction has. */
  readonly correction: number | undefined;
}

/** All slots of a bundle, each graph's in the order of its inputs. */
export interface SlotTable {
  readonly slots: readonly Slot[];
  readonly mode: "normalised" | undefined;
}

const slot: Decoder<Slot> = struct<Slot>({
  path: required(text),
  kind: required(oneOf("linear", "conv")),
  in_features: required(integer(1, 2 ** 20)),
  out_features: required(integer(1, 2 ** 20)),
  rank: required(integer(1, 2 ** 16)),
  dtype: optional(oneOf("float32", "int16", "int8"), "float32"),
  kernel: optional(listOf(integer(1, 64), 2, 2), [1, 1]),
  component: optional(text, UNET),
  largest: maybe(integer(1, 32767)),
  correction: maybe(integer(1, 2 ** 16)),
});

export const slotTable: Decoder<SlotTable> = struct<SlotTable>({
  slots: required(listOf(slot)),
  mode: maybe(oneOf("normalised")),
});

/** Graph input name of A. */
export const aName = (slot: Slot): string => `${slot.path}.lora_A`;
/** Graph input name of B. */
export const bName = (slot: Slot): string => `${slot.path}.lora_B`;
/** Name of its scales in an adapter's file, of normalised slots. */
export const scaleName = (slot: Slot): string => `${slot.path}.lora_scale`;

/** Rank channels that adapters have, the first ones; 0 where only the base's correction has any. */
export const adapterRank = (slot: Slot): number => slot.rank - (slot.correction ?? 0);

/** Has a slot a correction of the base. */
export const isCorrected = (table: SlotTable): boolean => table.slots.some((slot) => slot.correction !== undefined);

/** Shape of A of an adapter that has this rank at the slot. */
export function aShape(slot: Slot, rank = slot.rank): readonly number[] {
  return [rank, slot.in_features, ...(slot.kind === "conv" ? slot.kernel : [])];
}

/** Shape of B of an adapter that has this rank at the slot. */
export function bShape(slot: Slot, rank = slot.rank): readonly number[] {
  return [slot.out_features, rank, ...(slot.kind === "conv" ? [1, 1] : [])];
}

/** Numbers in a row of A. */
export function rowSize(slot: Slot): number {
  return sizeOf(aShape(slot).slice(1));
}

/** Magnitude that entries of a slot's tensors may have on their symmetric lattice; infinite for floats. */
export function largestInteger(slot: Slot): number {
  if (slot.dtype === "float32") return Infinity;
  return slot.largest ?? (slot.dtype === "int16" ? 32767 : 127);
}

/** An array of the slot's element type. */
export function slotArray(slot: Slot, size: number): Float32Array | Int16Array | Int8Array {
  return new { float32: Float32Array, int16: Int16Array, int8: Int8Array }[slot.dtype](size);
}

/** Graph input of scales -> the slots whose scales it holds, in order; empty where slots are not normalised. */
export function scaleInputs(table: SlotTable): ReadonlyMap<string, readonly Slot[]> {
  const inputs = new Map<string, Slot[]>();
  for (const each of table.mode === undefined ? [] : table.slots) {
    const name = `${each.component}.lora_scales`;
    inputs.set(name, [...(inputs.get(name) ?? []), each]);
  }
  return inputs;
}

/** Graph input name -> shape, of the slots of one graph. */
export function inputShapes(table: SlotTable, component: string): ReadonlyMap<string, readonly number[]> {
  const shapes = new Map<string, readonly number[]>();
  const own = table.slots.filter((each) => each.component === component);
  for (const each of own) {
    shapes.set(aName(each), aShape(each));
    shapes.set(bName(each), bShape(each));
  }
  for (const [name, members] of scaleInputs({ slots: own, mode: table.mode })) {
    shapes.set(name, [members.reduce((sum, member) => sum + member.rank, 0)]);
  }
  return shapes;
}
