/** Encodings of the graphs' inputs, as `quad.core.encoding` and `quad.core.profile`; only what a runtime reads of a profile. */

import { boolean, type Decoder, integer, listOf, mapOf, maybe, number, optional, required, struct, text } from "./decode.js";
import { roundHalfEven } from "./numbers.js";

/** Affine encoding of one tensor. */
export interface Encoding {
  readonly bits: number;
  readonly signed: boolean;
  readonly symmetric: boolean;
  readonly scale: readonly number[];
  readonly zero_point: readonly number[];
  readonly largest: number | undefined;
}

type Encodings = Readonly<Record<string, Readonly<Record<string, Encoding>>>>;

/** The encodings of every weight, slot and activation, by component and tensor name. */
export interface Profile {
  readonly encodings: Encodings;
  readonly groups: readonly { readonly encodings: Encodings }[] | undefined;
}

const encoding: Decoder<Encoding> = struct<Encoding>({
  bits: required(integer(4, 32)),
  signed: required(boolean),
  symmetric: required(boolean),
  scale: required(listOf(number())),
  zero_point: required(listOf(integer())),
  largest: maybe(integer(1)),
});
const encodings = mapOf(mapOf(encoding));

export const profileDecoder: Decoder<Profile> = struct<Profile & { mode: string }>({
  encodings: required(encodings),
  groups: maybe(listOf(struct<{ encodings: Encodings }>({ encodings: required(encodings) }), 1, 15)),
  mode: optional(text, "pooled"),
});

/** The largest integer of an encoding. */
export function qmax(of: Encoding): number {
  return of.largest ?? (of.signed ? 2 ** (of.bits - 1) - 1 : 2 ** of.bits - 1);
}

/** `clamp(round(T / s) + z, qmin, qmax)`, ties to even, in float32; per tensor. */
export function quantize(values: Float32Array, by: Encoding): Int8Array | Uint8Array | Int16Array | Uint16Array {
  const scale = Math.fround(by.scale[0]!);
  const zero = by.zero_point[0]!;
  const top = qmax(by);
  const least = by.signed ? (by.symmetric ? -top : -(2 ** (by.bits - 1))) : 0;
  const integers = newIntegers(by, values.length);
  for (let i = 0; i < values.length; i++) {
    const step = Math.fround(roundHalfEven(Math.fround(values[i]! / scale)) + zero);
    integers[i] = Math.min(Math.max(step, least), top);
  }
  return integers;
}

function newIntegers(by: Encoding, size: number): Int8Array | Uint8Array | Int16Array | Uint16Array {
  if (by.bits === 8) return by.signed ? new Int8Array(size) : new Uint8Array(size);
  return by.signed ? new Int16Array(size) : new Uint16Array(size);
}
