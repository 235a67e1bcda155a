/** Arrays with a shape, rows last to first as in NumPy. */

import { sizeOf } from "./numbers.js";

export type Numbers =
  | Float32Array
  | Float64Array
  | Int8Array
  | Uint8Array
  | Int16Array
  | Uint16Array
  | Int32Array
  | Uint32Array
  | BigInt64Array
  | BigUint64Array;

/** Numbers in C order, and the size of each axis. */
export interface Tensor<D extends Numbers = Numbers> {
  readonly data: D;
  readonly shape: readonly number[];
}

export type Float = Tensor<Float32Array>;

/** A tensor of zeros. */
export function zeros(shape: readonly number[]): Float {
  return { data: new Float32Array(sizeOf(shape)), shape };
}

/** Whether every number is finite. */
export function isFinite32(values: ArrayLike<number>): boolean {
  for (let i = 0; i < values.length; i++) if (!Number.isFinite(values[i])) return false;
  return true;
}

/** Tensors `(1, n, ...)` one after another along their second axis: channels, or rows. */
export function concatenate(parts: readonly Float[]): Float {
  const [first] = parts;
  const size = parts.reduce((sum, part) => sum + part.shape[1]!, 0);
  const joined = zeros([first!.shape[0]!, size, ...first!.shape.slice(2)]);
  let place = 0;
  for (const part of parts) {
    joined.data.set(part.data, place);
    place += part.data.length;
  }
  return joined;
}

/** Whether two shapes are the same. */
export function sameShape(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((size, axis) => size === b[axis]);
}
