/**
 * The arrays that are bound to a graph's slot inputs, made of an adapter's tensors as its file holds them; as
 * `quad.runtime.adapters.buffers`.
 *
 * Of normalised slots a file holds the scales of each slot's rank channels, `<path>.lora_scale`, and a graph reads those of all its slots in
 * one input. So an adapter's weight is a factor of that one array, and A and B stay the same arrays, whatever the weight.
 */

import { type Encoding, type Profile, quantize } from "../core/encoding.js";
import { mismatch, VerificationError } from "../core/errors.js";
import { sizeOf } from "../core/numbers.js";
import {
  adapterRank,
  aName,
  aShape,
  bName,
  bShape,
  isCorrected,
  rowSize,
  type Slot,
  type SlotTable,
  scaleInputs,
  scaleName,
  slotArray,
} from "../core/slots.js";
import { isFinite32, type Numbers, sameShape, type Tensor } from "../core/tensor.js";
import { shapeText } from "../core/text.js";
import type { Weight } from "./block_weights.js";
import { placeCorrection } from "./correction.js";

/** Graph input of scales -> those of all its slots, one after the other, as they are before a graph's encoding of them. */
export type ScaleVectors = ReadonlyMap<string, Float32Array>;

/** Graph input name -> array, not to be written to. */
export interface Buffers {
  readonly arrays: ReadonlyMap<string, Tensor>;
  readonly scales: ScaleVectors;
}

/** The zero adapter of a slot table, the base bit for bit, and the encodings of the scales that the graphs read as integers. */
export interface ZeroBuffers extends Buffers {
  readonly table: SlotTable;
  readonly encodings: ReadonlyMap<string, Encoding>;
}

/** The adapters of one picture, as they are bound to its graphs; `group` says whose graph they run in, counted from 0. */
export interface AdapterMix {
  readonly weights: ReadonlyMap<string, Weight>;
  readonly buffers: Buffers;
  readonly notes: readonly string[];
  readonly group: number;
}

const DTYPES: Readonly<Record<string, string>> = { Float32Array: "float32", Int16Array: "int16", Int8Array: "int8" };

/** The zero adapter, with the base's correction where it has one; inputs of one shape without it share one array. */
export function zeroBuffers(table: SlotTable, profile: Profile, correction: ReadonlyMap<string, Tensor> = new Map()): ZeroBuffers {
  const placed = placeCorrection(correction, table);
  const shared = new Map<string, Tensor>();
  const arrays = new Map<string, Tensor>();
  for (const slot of table.slots) {
    for (const [name, shape] of [
      [aName(slot), aShape(slot)],
      [bName(slot), bShape(slot)],
    ] as const) {
      const key = `${slot.dtype} ${shape.join("x")}`;
      const array = shared.get(key) ?? { data: slotArray(slot, sizeOf(shape)), shape };
      shared.set(key, array);
      arrays.set(name, placed.get(name) ?? array);
    }
  }
  const encodings = new Map<string, Encoding>();
  for (const [name, members] of scaleInputs(table)) {
    const encoding = profile.encodings[members[0]!.component]?.[name];
    if (encoding !== undefined) encodings.set(name, encoding);
  }
  const scales = scaleVectors(placed, table);
  return { table, encodings, scales, arrays: withScales(arrays, scales, encodings) };
}

/** The vectors that the graphs' inputs of scales read, made of `<path>.lora_scale` of any rank up to the slot's. */
export function scaleVectors(tensors: ReadonlyMap<string, Tensor>, table: SlotTable): ScaleVectors {
  const vectors = new Map<string, Float32Array>();
  for (const [name, members] of scaleInputs(table)) {
    const vector = new Float32Array(members.reduce((sum, slot) => sum + slot.rank, 0));
    let start = 0;
    for (const slot of members) {
      const own = tensors.get(scaleName(slot));
      if (own !== undefined) vector.set(own.data as Float32Array, start);
      start += slot.rank;
    }
    vectors.set(name, vector);
  }
  return vectors;
}

/** Scales of an adapter, zero in the channels of the base's correction, with those of the correction. */
export function corrected(scales: ScaleVectors, zeros: ZeroBuffers): ScaleVectors {
  if (!isCorrected(zeros.table)) return scales;
  return new Map([...scales].map(([name, vector]) => [name, vector.map((scale, index) => scale + zeros.scales.get(name)![index]!)]));
}

/** The scales of `corrected` without those of the correction. */
export function uncorrected(scales: ScaleVectors, zeros: ZeroBuffers): ScaleVectors {
  if (!isCorrected(zeros.table)) return scales;
  return new Map([...scales].map(([name, vector]) => [name, vector.map((scale, index) => scale - zeros.scales.get(name)![index]!)]));
}

/** Arrays and scales as the graphs read them: floats, or integers of their encoding. */
export function withScales(
  arrays: ReadonlyMap<string, Tensor>,
  scales: ScaleVectors,
  encodings: ReadonlyMap<string, Encoding>,
): ReadonlyMap<string, Tensor> {
  const all = new Map(arrays);
  for (const [name, vector] of scales) {
    const encoding = encodings.get(name);
    const data: Numbers = encoding === undefined ? vector : quantize(vector, encoding);
    all.set(name, { data, shape: [vector.length] });
  }
  return all;
}

/**
 * Every graph input at the slot's rank, zeros behind the channels of a smaller adapter, or the base's correction; a tensor that has it
 * already is not copied.
 */
export function pad(tensors: ReadonlyMap<string, Tensor>, zeros: ZeroBuffers): Buffers {
  const arrays = new Map(zeros.arrays);
  for (const slot of zeros.table.slots) {
    const a = tensors.get(aName(slot));
    const b = tensors.get(bName(slot));
    if (a === undefined || b === undefined) continue;
    const rank = a.shape[0]!;
    if (rank === slot.rank) {
      arrays.set(aName(slot), a);
      arrays.set(bName(slot), b);
      continue;
    }
    const down = slotArray(slot, slot.rank * rowSize(slot));
    const up = slotArray(slot, slot.out_features * slot.rank);
    if (slot.correction !== undefined) {
      down.set(zeros.arrays.get(aName(slot))!.data as Int16Array);
      up.set(zeros.arrays.get(bName(slot))!.data as Int16Array);
    }
    down.set(a.data as Int16Array);
    const columns = b.data as Int16Array;
    // Number by number: a view of each short row takes three times as long.
    for (let out = 0; out < slot.out_features; out++) {
      for (let channel = 0; channel < rank; channel++) up[out * slot.rank + channel] = columns[out * rank + channel]!;
    }
    arrays.set(aName(slot), { data: down, shape: aShape(slot) });
    arrays.set(bName(slot), { data: up, shape: bShape(slot) });
  }
  const scales = corrected(scaleVectors(tensors, zeros.table), zeros);
  return { arrays: withScales(arrays, scales, zeros.encodings), scales };
}

/**
 * Refuse what is no adapter for these slots: A and B come in pairs, in the slot's type, of one rank from 1 to the slot's, and of normalised
 * slots finite scales with them. Raises a `VerificationError`.
 */
export function checkTensors(name: string, tensors: ReadonlyMap<string, Tensor>, table: SlotTable): void {
  const where = `adapter '${name}'`;
  const ofAdapters = table.slots.filter(adapterRank);
  const known = new Set(ofAdapters.flatMap((slot) => partNames(slot, table)));
  const strange = [...tensors.keys()].filter((each) => !known.has(each)).sort();
  if (strange.length) throw odd(where, `tensors of ${table.slots.length} slots`, `${strange[0]}, which is none`);
  for (const slot of ofAdapters) {
    const names = partNames(slot, table);
    const parts = names.filter((each) => tensors.has(each));
    if (parts.length === 0) continue;
    if (parts.length < names.length) {
      const expected = table.mode === "normalised" ? "A, B and scales, or none of them" : "both A and B, or neither";
      throw odd(`${where}, slot ${slot.path}`, expected, `${parts.join(" and ")} alone`);
    }
    checkSlot(where, tensors, slot, table);
  }
}

function checkSlot(where: string, tensors: ReadonlyMap<string, Tensor>, slot: Slot, table: SlotTable): void {
  const a = tensors.get(aName(slot))!;
  const rank = a.shape[0] ?? 0;
  if (rank < 1 || rank > adapterRank(slot)) {
    throw odd(`${where}, ${aName(slot)}`, `a rank from 1 to ${adapterRank(slot)}`, `shape ${shapeText(a.shape)}`);
  }
  const expected: readonly (readonly [string, string, readonly number[]])[] = [
    [aName(slot), slot.dtype, aShape(slot, rank)],
    [bName(slot), slot.dtype, bShape(slot, rank)],
    [scaleName(slot), "float32", [rank]],
  ];
  for (const [name, dtype, shape] of expected.slice(0, partNames(slot, table).length)) {
    const tensor = tensors.get(name)!;
    const found = DTYPES[tensor.data.constructor.name] ?? tensor.data.constructor.name;
    if (found !== dtype || !sameShape(tensor.shape, shape)) {
      throw odd(`${where}, ${name}`, `${dtype} ${shapeText(shape)}`, `${found} ${shapeText(tensor.shape)}`);
    }
  }
  if (table.mode === "normalised" && !isFinite32(tensors.get(scaleName(slot))!.data as Float32Array)) {
    throw odd(`${where}, ${scaleName(slot)}`, "finite scales", "NaN or Inf");
  }
}

/** The tensors of a slot in a file. */
function partNames(slot: Slot, table: SlotTable): readonly string[] {
  return [aName(slot), bName(slot), ...(table.mode === "normalised" ? [scaleName(slot)] : [])];
}

function odd(where: string, expected: string, found: string): VerificationError {
  return new VerificationError(mismatch(where, expected, found, "pack it again with quad adapt"));
}
