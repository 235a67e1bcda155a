/**
 * The weighted sum of several adapters at one slot, in the integers of the slot's lattice; as `quad.runtime.adapters.slot_sum`.
 *
 * `sum_i w_i B_i A_i x = [w_1 B_1 | w_2 B_2 | ...] [A_1; A_2; ...] x`: rank channels are laid side by side. A weight scales B, which is
 * rounded again; A stays as it is, so that `A x` stays in the range that it was encoded for.
 */

import { roundHalfEven } from "../core/numbers.js";
import { adapterRank, aName, aShape, bName, bShape, largestInteger, rowSize, type Slot, slotArray } from "../core/slots.js";
import type { Tensor } from "../core/tensor.js";
import type { Buffers } from "./buffers.js";
import { nearest, type Rows } from "./low_rank.js";

type SlotNumbers = Float32Array | Int16Array | Int8Array;

/** One adapter at one slot; `rows` are the rank channels where neither A nor B is zero. */
export interface Part {
  readonly name: string;
  readonly weight: number;
  readonly a: Tensor;
  readonly b: Tensor;
  readonly rows: readonly number[];
}

/** Both buffers of a slot, how many entries left the lattice of each part, and which share of the exact sum's energy is kept. */
export interface Sum {
  readonly a: Tensor;
  readonly b: Tensor;
  readonly clipped: ReadonlyMap<string, number>;
  readonly energy: number | undefined;
}

/** An adapter at a slot. */
export function partOf(name: string, weight: number, buffers: Buffers, slot: Slot): Part {
  const a = buffers.arrays.get(aName(slot))!;
  const b = buffers.arrays.get(bName(slot))!;
  const rows = weight ? aliveRows(slot, a.data as SlotNumbers, b.data as SlotNumbers) : [];
  return { name, weight, a, b, rows };
}

/** The sum of parts, one at least, none without a channel: exact but for rounding where the ranks fit the slot, else the nearest. */
export function addParts(parts: readonly Part[], slot: Slot): Sum {
  const [first] = parts;
  if (parts.length === 1) return alone(first!, slot);
  if (parts.reduce((sum, part) => sum + part.rows.length, 0) <= adapterRank(slot)) return sideBySide(parts, slot);
  const a = parts.flatMap((part) => part.rows.map((row) => rowOf(part, row, slot)));
  const b = parts.flatMap((part) => part.rows.map((row) => columnOf(part, row, slot, part.weight)));
  const places = rowPlaces(a);
  if (Math.max(...places) < adapterRank(slot)) {
    const shared = gathered(a, b, places);
    return written(shared.a, shared.b, slot, undefined);
  }
  const product = nearest(a, b, adapterRank(slot), largestInteger(slot));
  return written(product.a, product.b, slot, product.energy);
}

/** Row of A of a channel, kernels counted as inputs. */
export function rowOf(part: Part, row: number, slot: Slot): Float64Array {
  const size = rowSize(slot);
  return Float64Array.from((part.a.data as SlotNumbers).subarray(row * size, (row + 1) * size));
}

/** Column of B of a channel times a number. */
export function columnOf(part: Part, row: number, slot: Slot, factor: number): Float64Array {
  const data = part.b.data as SlotNumbers;
  return Float64Array.from({ length: slot.out_features }, (_, out) => data[out * slot.rank + row]! * factor);
}

/** The number of every row among the different rows. */
export function rowPlaces(rows: Rows): readonly number[] {
  const places = new Map<string, number>();
  return rows.map((row) => {
    const key = row.join();
    const place = places.get(key) ?? places.size;
    places.set(key, place);
    return place;
  });
}

/** `B A = (sum of the columns of B that stand at one row of A) (the different rows of A)`, exactly. */
export function gathered(a: Rows, b: Rows, places: readonly number[]): { readonly a: Rows; readonly b: Rows } {
  const rows: Float64Array[] = [];
  const columns: Float64Array[] = [];
  for (const [index, place] of places.entries()) {
    rows[place] = a[index]!;
    const column = b[index]!;
    const sum = columns[place];
    columns[place] = sum === undefined ? Float64Array.from(column) : sum.map((value, out) => value + column[out]!);
  }
  return { a: rows, b: columns };
}

/** Write a row of A and a column of B of one channel into the buffers of a slot. */
export function writeChannel(
  slot: Slot,
  channel: number,
  a: SlotNumbers,
  row: ArrayLike<number>,
  b: SlotNumbers,
  column: ArrayLike<number>,
): void {
  a.set(row, channel * rowSize(slot));
  for (let out = 0; out < slot.out_features; out++) b[out * slot.rank + channel] = column[out]!;
}

/** Empty buffers of a slot. */
export function emptyBuffers(slot: Slot): { readonly a: SlotNumbers; readonly b: SlotNumbers } {
  return { a: slotArray(slot, slot.rank * rowSize(slot)), b: slotArray(slot, slot.out_features * slot.rank) };
}

/** Buffers as tensors. */
export function asSum(slot: Slot, a: SlotNumbers, b: SlotNumbers, clipped: ReadonlyMap<string, number>, energy?: number): Sum {
  return { a: { data: a, shape: aShape(slot) }, b: { data: b, shape: bShape(slot) }, clipped, energy };
}

function aliveRows(slot: Slot, a: SlotNumbers, b: SlotNumbers): number[] {
  const size = rowSize(slot);
  const rows: number[] = [];
  for (let row = 0; row < slot.rank; row++) {
    if (!a.subarray(row * size, (row + 1) * size).some((value) => value !== 0)) continue;
    for (let out = 0; out < slot.out_features; out++) {
      if (b[out * slot.rank + row] !== 0) {
        rows.push(row);
        break;
      }
    }
  }
  return rows;
}

/** A is the adapter's own array, and its channels stay where they are. */
function alone(part: Part, slot: Slot): Sum {
  if (part.weight === 1) return { a: part.a, b: part.b, clipped: new Map(), energy: undefined };
  const { a, b } = emptyBuffers(slot);
  a.set(part.a.data as SlotNumbers);
  const lost = round(
    Float64Array.from(part.b.data as SlotNumbers, (value) => part.weight * value),
    slot,
  );
  b.set(lost.values);
  return { a: part.a, b: { data: b, shape: bShape(slot) }, clipped: new Map([[part.name, lost.count]]), energy: undefined };
}

function sideBySide(parts: readonly Part[], slot: Slot): Sum {
  const { a, b } = emptyBuffers(slot);
  const clipped = new Map<string, number>();
  let channel = 0;
  for (const part of parts) {
    let count = 0;
    for (const row of part.rows) {
      const column = round(columnOf(part, row, slot, part.weight), slot);
      writeChannel(slot, channel, a, rowOf(part, row, slot), b, column.values);
      count += column.count;
      channel += 1;
    }
    clipped.set(part.name, count);
  }
  return asSum(slot, a, b, clipped);
}

/** Factors as buffers of the slot, on its lattice. */
function written(rows: Rows, columns: Rows, slot: Slot, energy: number | undefined): Sum {
  const { a, b } = emptyBuffers(slot);
  let count = 0;
  for (const [channel, row] of rows.entries()) {
    const down = round(row, slot);
    const up = round(columns[channel]!, slot);
    count += down.count + up.count;
    writeChannel(slot, channel, a, down.values, b, up.values);
  }
  return asSum(slot, a, b, new Map([["", count]]), energy);
}

/** Entries on the slot's lattice, and how many of them lay beyond its end. */
function round(values: Float64Array, slot: Slot): { readonly values: Float64Array; readonly count: number } {
  const limit = largestInteger(slot);
  if (limit === Infinity) return { values, count: 0 };
  const steps = values.map(roundHalfEven);
  const count = steps.reduce((sum, step) => sum + (Math.abs(step) > limit ? 1 : 0), 0);
  return { values: count ? steps.map((step) => Math.min(Math.max(step, -limit), limit)) : steps, count };
}
