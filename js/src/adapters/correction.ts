/**
 * The base's correction: what rounding to 4 bits took from each layer, behind every adapter's channels; as `quad.core.correction`.
 *
 * A file holds it in bytes, once for a bundle; slots of 16 bits read a byte as 256 steps. It is bound beside whatever adapter there is, and
 * for the base alone, and an adapter's weight does not count for it.
 */

import type { Bundle, OpenOptions } from "../bundle/bundle.js";
import { readSafetensors } from "../bundle/safetensors.js";
import { mismatch, VerificationError } from "../core/errors.js";
import { BASE_CORRECTION_FILE } from "../core/manifest.js";
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
  scaleName,
  slotArray,
} from "../core/slots.js";
import { isFinite32, sameShape, type Tensor } from "../core/tensor.js";
import { shapeText } from "../core/text.js";

const BYTE_STEPS: Readonly<Record<Slot["dtype"], number>> = { float32: 1, int16: 256, int8: 1 };

type Tensors = ReadonlyMap<string, Tensor>;

/** Tensors of the base's correction as its file holds them, none where the base has none. Raises a `VerificationError` for others. */
export async function readCorrection(bundle: Bundle, options: OpenOptions = {}): Promise<Tensors> {
  if (!isCorrected(bundle.slots)) return new Map();
  const where = `${bundle.source.name}/${BASE_CORRECTION_FILE}`;
  const { tensors } = readSafetensors(where, await bundle.read(BASE_CORRECTION_FILE, options));
  const expected = correctionShapes(bundle.slots);
  for (const name of [...new Set([...expected.keys(), ...tensors.keys()])].sort()) {
    const [type, shape] = expected.get(name) ?? [undefined, []];
    const found = tensors.get(name);
    const isRight = type !== undefined && found?.data instanceof type && sameShape(found.shape, shape);
    if (isRight && (!(found.data instanceof Float32Array) || isFinite32(found.data))) continue;
    const promised = type === undefined ? "none of that name" : `${type.name} ${shapeText(shape)}`;
    const actual = found === undefined ? "none" : `${found.data.constructor.name} ${shapeText(found.shape)}`;
    throw new VerificationError(mismatch(`${where}, ${name}`, promised, actual, "build the bundle again"));
  }
  return tensors;
}

type Shape = readonly [typeof Int8Array | typeof Float32Array, readonly number[]];

function correctionShapes(table: SlotTable): ReadonlyMap<string, Shape> {
  return new Map(
    table.slots.flatMap((slot): [string, Shape][] => {
      const rank = slot.correction;
      if (rank === undefined) return [];
      return [
        [aName(slot), [Int8Array, aShape(slot, rank)]],
        [bName(slot), [Int8Array, bShape(slot, rank)]],
        [scaleName(slot), [Float32Array, [rank]]],
      ];
    }),
  );
}

/** Graph inputs with the correction in their last rank channels and zeros before it; its scales at the slot's rank among them. */
export function placeCorrection(tensors: Tensors, table: SlotTable): Tensors {
  const placed = new Map<string, Tensor>();
  for (const slot of table.slots) {
    const [a, b, scales] = [aName(slot), bName(slot), scaleName(slot)].map((name) => tensors.get(name)?.data);
    if (a === undefined || b === undefined || scales === undefined) continue;
    const [first, steps] = [adapterRank(slot), BYTE_STEPS[slot.dtype]];
    const down = slotArray(slot, slot.rank * rowSize(slot));
    const up = slotArray(slot, slot.out_features * slot.rank);
    const own = slot.rank - first;
    for (const [index, value] of (a as Int8Array).entries()) down[first * rowSize(slot) + index] = value * steps;
    for (const [index, value] of (b as Int8Array).entries()) {
      up[Math.floor(index / own) * slot.rank + first + (index % own)] = value * steps;
    }
    const vector = new Float32Array(slot.rank);
    vector.set(scales as Float32Array, first);
    placed.set(aName(slot), { data: down, shape: aShape(slot) }).set(bName(slot), { data: up, shape: bShape(slot) });
    placed.set(scaleName(slot), { data: vector, shape: [slot.rank] });
  }
  return placed;
}
