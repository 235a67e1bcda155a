/**
 * The weighted sum of several adapters at one normalised slot: a weight is a factor of the scales, and integers stay as they are.
 *
 *     sum_i w_i B_i diag(s_i) (A_i x) = [B_1 | B_2 | ...] diag(w_1 s_1, w_2 s_2, ...) [A_1; A_2; ...] x
 *
 * Where the ranks together fit the slot's, that is exact, whatever the weights. Otherwise a sum's factors are normalised anew, a rank channel
 * at a time; as `quad.runtime.adapters.normalised_sum`.
 */

import { roundHalfEven } from "../core/numbers.js";
import { adapterRank, largestInteger, type Slot } from "../core/slots.js";
import { MID_ROOM, nearest, norm, peak, type Rows, scaled } from "./low_rank.js";
import { asSum, columnOf, emptyBuffers, gathered, type Part, rowOf, rowPlaces, type Sum, writeChannel } from "./slot_sum.js";

/** One adapter at one slot, and what its rank channels count, the weight in it. */
export interface ScaledPart {
  readonly part: Part;
  readonly scales: Float64Array;
}

/** A sum and its scales `(slot.rank,)`. */
export interface ScaledSum {
  readonly sum: Sum;
  readonly scales: Float32Array;
}

/** The sum of parts, one at least, none without a channel. */
export function addScaled(parts: readonly ScaledPart[], slot: Slot): ScaledSum {
  const [first] = parts;
  if (parts.length === 1) {
    const { a, b } = first!.part;
    return { sum: { a, b, clipped: new Map(), energy: undefined }, scales: Float32Array.from(first!.scales) };
  }
  if (parts.reduce((sum, { part }) => sum + part.rows.length, 0) <= adapterRank(slot)) return sideBySide(parts, slot);
  const rows = parts.flatMap(({ part }) => part.rows.map((row) => rowOf(part, row, slot)));
  const columns = parts.flatMap(({ part, scales }) => part.rows.map((row) => columnOf(part, row, slot, scales[row]!)));
  const places = rowPlaces(rows);
  if (Math.max(...places) < adapterRank(slot)) {
    const shared = gathered(rows, columns, places);
    return written(shared.a, normalised(shared.b, slot), slot, undefined);
  }
  const product = nearest(rows, columns, adapterRank(slot), Infinity);
  const longest = MID_ROOM * Math.max(0, ...rows.map(norm));
  const down = normalised(product.a, slot, longest);
  const up = product.b.map((column, channel) => scaled(column, down.undo[channel]!));
  return written(down.vectors, normalised(up, slot), slot, product.energy);
}

function sideBySide(parts: readonly ScaledPart[], slot: Slot): ScaledSum {
  const { a, b } = emptyBuffers(slot);
  const scales = new Float32Array(slot.rank);
  let channel = 0;
  for (const { part, scales: own } of parts) {
    for (const row of part.rows) {
      writeChannel(slot, channel, a, rowOf(part, row, slot), b, columnOf(part, row, slot, 1));
      scales[channel] = own[row]!;
      channel += 1;
    }
  }
  return { sum: asSum(slot, a, b, new Map()), scales };
}

interface Normalised {
  readonly vectors: Rows;
  /** Factors that undo it. */
  readonly undo: Float64Array;
}

/** Each vector stretched to the lattice's end, or to a length where it would become longer. */
function normalised(vectors: Rows, slot: Slot, longest = Infinity): Normalised {
  const limit = largestInteger(slot);
  const end = limit === Infinity ? 1 : limit;
  const gains = vectors.map((vector) => (peak(vector) > 0 ? Math.min(end / peak(vector), longest / norm(vector)) : 1));
  return {
    vectors: vectors.map((vector, index) => scaled(vector, gains[index]!)),
    undo: Float64Array.from(vectors, (vector, index) => (peak(vector) > 0 ? 1 / gains[index]! : 0)),
  };
}

function written(rows: Rows, columns: Normalised, slot: Slot, energy: number | undefined): ScaledSum {
  const { a, b } = emptyBuffers(slot);
  const scales = new Float32Array(slot.rank);
  const onLattice = (vector: Float64Array): Float64Array => (slot.dtype === "float32" ? vector : vector.map(roundHalfEven));
  for (const [channel, row] of rows.entries()) {
    writeChannel(slot, channel, a, onLattice(row), b, onLattice(columns.vectors[channel]!));
    scales[channel] = columns.undo[channel]!;
  }
  return { sum: asSum(slot, a, b, new Map(), energy), scales };
}
