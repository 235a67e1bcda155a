/** safetensors files: everything that their header says is doubted. */

import { DecodeError, decodeJson, integer, listOf, mapOf, required, struct, text } from "../core/decode.js";
import { mismatch, VerificationError } from "../core/errors.js";
import { sizeOf } from "../core/numbers.js";
import type { Numbers, Tensor } from "../core/tensor.js";

const LENGTH_BYTES = 8;
const LONGEST_HEADER = 16 * 2 ** 20;

interface ArrayType {
  readonly BYTES_PER_ELEMENT: number;
  new (buffer: ArrayBuffer): Numbers;
}

const TYPES: Readonly<Record<string, ArrayType>> = {
  F64: Float64Array,
  F32: Float32Array,
  I64: BigInt64Array,
  I32: Int32Array,
  I16: Int16Array,
  I8: Int8Array,
  U64: BigUint64Array,
  U32: Uint32Array,
  U16: Uint16Array,
  U8: Uint8Array,
};

interface Entry {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data_offsets: readonly number[];
}

const entry = struct<Entry>(
  { dtype: required(text), shape: required(listOf(integer(0), 0, 8)), data_offsets: required(listOf(integer(0), 2, 2)) },
  true,
);

/** The words and tensors of a file; every tensor is a copy, so that it is aligned. */
export interface TensorFile {
  readonly metadata: Readonly<Record<string, string>>;
  readonly tensors: ReadonlyMap<string, Tensor>;
}

/** Read a whole file. Raises a `VerificationError` for what is none, or does not describe each byte of its data once. */
export function readSafetensors(where: string, content: Uint8Array): TensorFile {
  try {
    return parsed(content);
  } catch (error) {
    if (!(error instanceof DecodeError)) throw error;
    throw new VerificationError(mismatch(where, "a safetensors file", `something else (${error.message})`, "fetch it again"));
  }
}

function parsed(content: Uint8Array): TensorFile {
  if (content.length <= LENGTH_BYTES) throw new DecodeError(`${content.length} bytes`);
  const length = Number(new DataView(content.buffer, content.byteOffset).getBigUint64(0, true));
  const start = LENGTH_BYTES + length;
  if (length > LONGEST_HEADER || start > content.length) {
    throw new DecodeError(`a header of ${length} bytes in a file of ${content.length}`);
  }
  const header = decodeJson(
    content.subarray(LENGTH_BYTES, start),
    mapOf((value, at) => ({ value, at })),
  );
  const metadata = header.__metadata__ ? mapOf(text)(header.__metadata__.value, "$.__metadata__") : {};
  const entries = Object.entries(header)
    .filter(([name]) => name !== "__metadata__")
    .map(([name, { value, at }]) => [name, entry(value, at)] as const);
  const tensors = new Map<string, Tensor>();
  let end = 0;
  for (const [name, each] of entries.toSorted(([, a], [, b]) => a.data_offsets[0]! - b.data_offsets[0]!)) {
    const type = TYPES[each.dtype];
    if (type === undefined) throw new DecodeError(`${name.slice(0, 80)} of type ${each.dtype.slice(0, 20)}`);
    const [begin, after] = each.data_offsets as [number, number];
    if (begin !== end || after - begin !== sizeOf(each.shape) * type.BYTES_PER_ELEMENT || start + after > content.length) {
      throw new DecodeError(`${name.slice(0, 80)} of shape (${each.shape.join(", ")}) at ${begin} to ${after}`);
    }
    tensors.set(name, { data: new type(content.slice(start + begin, start + after).buffer), shape: each.shape });
    end = after;
  }
  if (start + end !== content.length) throw new DecodeError(`${content.length - start - end} bytes that belong to no tensor`);
  return { metadata, tensors };
}
