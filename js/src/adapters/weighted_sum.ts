/**
 * Several adapters at once, with weights: the sum at every slot, and what is to be said of it; as `quad.runtime.adapters.weighted_sum`.
 *
 * Where the ranks together fit the slot's, and with weights of 1, nothing is rounded; at normalised slots with any weights. What is too much
 * becomes the nearest product of the slot's rank, and a note says what that keeps. Base plus nothing is the base, bit for bit.
 */

import { qmax } from "../core/encoding.js";
import { CompatibilityError, mismatch, UsageError } from "../core/errors.js";
import { adapterRank, aName, bName, largestInteger, type Slot, type SlotTable, scaleInputs, scaleName } from "../core/slots.js";
import type { Tensor } from "../core/tensor.js";
import { quoted } from "../core/text.js";
import { BlockWeights, largestWeight, type Weight, weightAt, weightText } from "./block_weights.js";
import { type Buffers, corrected, type ScaleVectors, scaleVectors, uncorrected, withScales, type ZeroBuffers } from "./buffers.js";
import { addScaled, type ScaledPart } from "./normalised_sum.js";
import { addParts, partOf } from "./slot_sum.js";

const MIN_ENERGY = 0.9;
const MOST_FLOAT = 3.4028234663852886e38;

type Parts = ReadonlyMap<string, Buffers>;
type Weights = ReadonlyMap<string, Weight>;

/** Buffers of a weighted sum, and notes on ranks that did not fit and on values that were clipped. */
export interface Mixed {
  readonly buffers: Buffers;
  readonly notes: readonly string[];
}

/** A line for each adapter of normalised slots whose weight is over those that its admission tried. */
export function strengthNotes(weights: Weights, rooms: ReadonlyMap<string, number | undefined>, table: SlotTable): readonly string[] {
  if (table.mode !== "normalised") return [];
  return [...weights].flatMap(([name, weight]) => {
    const room = rooms.get(name);
    if (room === undefined || largestWeight(weight, table) <= room) return [];
    const tried = `it was tried up to ${roomText(room)}, beyond it activations of the network may be cut off`;
    return [`adapters: ${quoted(name)} at weight ${weightText(weight)}: ${tried}`];
  });
}

/**
 * Buffers of the weighted sum of adapters. Raises a `CompatibilityError` where the ranks at some slot exceed its own and the nearest sum keeps
 * too little, a `UsageError` where scales times a weight are beyond all numbers.
 */
export function mixAdapters(parts: Parts, weights: Weights, zeros: ZeroBuffers): Mixed {
  const mixed = zeros.table.mode === "normalised" ? mixScaled(parts, weights, zeros) : mixSearched(parts, weights, zeros);
  return { buffers: mixed.buffers, notes: [...blockNotes(weights, zeros.table), ...mixed.notes] };
}

function mixSearched(parts: Parts, weights: Weights, zeros: ZeroBuffers): Mixed {
  const arrays = new Map(zeros.arrays);
  const clipped = new Map<string, number>();
  const cut = new Map<string, number>();
  for (const slot of zeros.table.slots) {
    const used = [...parts].map(([name, buffers]) => partOf(name, weightAt(weights.get(name)!, slot.path), buffers, slot));
    const alive = used.filter((part) => part.rows.length);
    if (!alive.length) continue;
    const total = addParts(alive, slot);
    arrays.set(aName(slot), total.a).set(bName(slot), total.b);
    for (const [name, count] of total.clipped) clipped.set(name, (clipped.get(name) ?? 0) + count);
    if (total.energy !== undefined) cut.set(slot.path, total.energy);
  }
  requireEnergy(cut, parts, weights, zeros.table);
  const notes = [...cutNotes(cut, parts), ...clipNotes(clipped, parts, weights, zeros.table)];
  return { buffers: { arrays, scales: zeros.scales }, notes };
}

function mixScaled(parts: Parts, weights: Weights, zeros: ZeroBuffers): Mixed {
  const { table, encodings } = zeros;
  const weighted = new Map(
    [...parts].map(([name, { scales }]) => [name, times(name, weights.get(name)!, uncorrected(scales, zeros), table)]),
  );
  const [only] = parts;
  if (parts.size === 1) {
    // Of one adapter alone A and B stay the same arrays.
    const [name, source] = only!;
    const scales = corrected(new Map([...weighted.get(name)!].map(([input, vector]) => [input, Float32Array.from(vector)])), zeros);
    const buffers = { arrays: withScales(source.arrays, scales, encodings), scales };
    return { buffers, notes: scaleNotes(scales, parts, weights, zeros) };
  }
  const slotScales = new Map([...weighted].map(([name, vectors]) => [name, bySlot(vectors, table)]));
  const arrays = new Map(zeros.arrays);
  const totals = new Map<string, Tensor>();
  const cut = new Map<string, number>();
  for (const slot of table.slots) {
    const used = [...parts].map(([name, buffers]) => scaledPart(name, buffers, slotScales.get(name)!.get(slot.path)!, slot));
    const alive = used.filter(({ part }) => part.rows.length);
    if (!alive.length) continue;
    const { sum, scales } = addScaled(alive, slot);
    arrays
      .set(aName(slot), besideCorrection(sum.a, aName(slot), zeros, slot))
      .set(bName(slot), besideCorrection(sum.b, bName(slot), zeros, slot));
    totals.set(scaleName(slot), { data: scales, shape: [scales.length] });
    if (sum.energy !== undefined) cut.set(slot.path, sum.energy);
  }
  requireEnergy(cut, parts, weights, table);
  const scales = corrected(scaleVectors(totals, table), zeros);
  const buffers = { arrays: withScales(arrays, scales, encodings), scales };
  return { buffers, notes: [...cutNotes(cut, parts), ...scaleNotes(scales, parts, weights, zeros)] };
}

/** A or B of a sum with the base's correction where it is not there yet: zeros stand in its channels, and other arrays are not written to. */
function besideCorrection(tensor: Tensor, name: string, zeros: ZeroBuffers, slot: Slot): Tensor {
  if (slot.correction === undefined) return tensor;
  const own = zeros.arrays.get(name)!.data as Int16Array;
  return { data: (tensor.data as Int16Array).map((value, index) => value || own[index]!), shape: tensor.shape };
}

/** A part without the rank channels that count nothing. */
function scaledPart(name: string, buffers: Buffers, scales: Float64Array, slot: Slot): ScaledPart {
  const part = partOf(name, 1, buffers, slot);
  return { part: { ...part, rows: part.rows.filter((row) => scales[row] !== 0) }, scales };
}

/** An adapter's scales times its weight at their slots, by graph input. */
function times(name: string, weight: Weight, scales: ScaleVectors, table: SlotTable): ReadonlyMap<string, Float64Array> {
  const weighted = new Map<string, Float64Array>();
  for (const [input, members] of scaleInputs(table)) {
    const factors = members.flatMap((slot) => Array<number>(slot.rank).fill(weightAt(weight, slot.path)));
    const vector = Float64Array.from(scales.get(input)!, (scale, index) => scale * factors[index]!);
    if (vector.some((value) => Math.abs(value) > MOST_FLOAT)) {
      const expected = "a weight that its scales can be multiplied by";
      throw new UsageError(mismatch(`adapter ${quoted(name)}`, expected, weightText(weight), "use a smaller one"));
    }
    weighted.set(input, vector);
  }
  return weighted;
}

/** Slot path -> its part of the vectors. */
function bySlot(vectors: ReadonlyMap<string, Float64Array>, table: SlotTable): ReadonlyMap<string, Float64Array> {
  const parts = new Map<string, Float64Array>();
  for (const [input, members] of scaleInputs(table)) {
    let start = 0;
    for (const slot of members) {
      parts.set(slot.path, vectors.get(input)!.subarray(start, start + slot.rank));
      start += slot.rank;
    }
  }
  return parts;
}

function requireEnergy(cut: ReadonlyMap<string, number>, parts: Parts, weights: Weights, table: SlotTable): void {
  const worst = lowest(cut);
  if (worst === undefined || worst[1] >= MIN_ENERGY) return;
  const ranks = (slot: Slot): [string, number][] =>
    [...parts].map(([name, buffers]) => [name, partOf(name, weightAt(weights.get(name)!, slot.path), buffers, slot).rows.length]);
  const slot = table.slots.find((each) => each.path === worst[0])!;
  const all = table.slots.map((each) => ranks(each).map(([, rank]) => rank));
  const names = ranks(slot).filter(([, rank]) => rank);
  const needed = names.reduce((sum, [, rank]) => sum + rank, 0);
  const count = Math.max(...all.map((each) => each.filter((rank) => rank > 0).length));
  const most = Math.max(...all.map((each) => each.reduce((sum, rank) => sum + rank, 0)));
  throw new CompatibilityError(
    `adapters ${names.map(([name, rank]) => `${quoted(name)} (rank ${rank})`).join(" + ")} need rank ${needed} at slot ${slot.path}, the ` +
      `bundle has ${adapterRank(slot)}, and the nearest sum of that rank keeps ${worst[1].toFixed(2)} of theirs, under ${MIN_ENERGY}: use fewer at ` +
      `once or build with --room ${count} or --max-rank ${most}`,
  );
}

function lowest(cut: ReadonlyMap<string, number>): readonly [string, number] | undefined {
  return [...cut].sort(([, a], [, b]) => a - b)[0];
}

/** A line for each adapter with a weight for blocks that no slot lies in. */
function blockNotes(weights: Weights, table: SlotTable): string[] {
  const paths = table.slots.map((slot) => slot.path);
  return [...weights].flatMap(([name, weight]) => {
    const odd = weight instanceof BlockWeights ? weight.unmatched(paths) : [];
    const places = odd.map((block) => block.replace(/\.$/, "")).join(", ");
    return odd.length
      ? [`adapters: ${quoted(name)} has a weight for ${places}, where this bundle takes no adapter: it changes nothing`]
      : [];
  });
}

function cutNotes(cut: ReadonlyMap<string, number>, parts: Parts): string[] {
  const worst = lowest(cut);
  if (worst === undefined) return [];
  const together = [...parts.keys()].map(quoted).join(" + ");
  const kept = `the nearest sum keeps ${worst[1].toFixed(3)} at ${worst[0]}, the worst`;
  return [`adapters: ${together} exceed the rank of ${cut.size} slots; ${kept}`];
}

function clipNotes(clipped: ReadonlyMap<string, number>, parts: Parts, weights: Weights, table: SlotTable): string[] {
  return [...clipped].flatMap(([name, count]) => {
    if (!count) return [];
    if (!name) return [`adapters: ${count} weights of the sum left the profile's range and were clipped; use smaller weights`];
    const room = roomText(headroom(parts.get(name)!, table));
    const fits = `up to ${room} fits the profile; ${count} weights were clipped`;
    return [`adapters: ${quoted(name)} at weight ${weightText(weights.get(name)!)}: ${fits}`];
  });
}

/** A line about scales that lie beyond the end of the graphs' integers. */
function scaleNotes(scales: ScaleVectors, parts: Parts, weights: Weights, zeros: ZeroBuffers): string[] {
  let count = 0;
  for (const [name, encoding] of zeros.encodings) {
    const end = encoding.scale[0]! * (qmax(encoding) + 0.5);
    count += scales.get(name)!.reduce((sum, scale) => sum + (Math.abs(scale) > end ? 1 : 0), 0);
  }
  if (!count) return [];
  const [only] = parts;
  if (parts.size > 1) return [`adapters: ${count} scales of the sum left the profile's range and were clipped; use smaller weights`];
  const [name, source] = only!;
  const rooms = [...zeros.encodings].map(
    ([input, encoding]) => (qmax(encoding) * encoding.scale[0]!) / largestOf(source.scales.get(input)!),
  );
  const fits = `up to ${roomText(Math.min(...rooms))} fits the profile; ${count} scales were clipped`;
  return [`adapters: ${quoted(name)} at weight ${weightText(weights.get(name)!)}: ${fits}`];
}

/** The largest weight with which no entry of B leaves the lattice. */
function headroom(buffers: Buffers, table: SlotTable): number {
  return table.slots.reduce((room, slot) => {
    const largest = largestOf(buffers.arrays.get(bName(slot))!.data as Int16Array);
    return largest ? Math.min(room, largestInteger(slot) / largest) : room;
  }, Infinity);
}

function largestOf(values: Float32Array | Int16Array): number {
  let largest = 0;
  for (const value of values) largest = Math.max(largest, Math.abs(value));
  return largest;
}

/** Two digits, never more than what it is. */
function roomText(room: number): string {
  return room === Infinity ? "inf" : (Math.floor(room * 100) / 100).toFixed(2);
}
