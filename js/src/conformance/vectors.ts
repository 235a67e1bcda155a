/** `conformance.json` and the tensors beside it: inputs that any runtime can be fed with, and what it shall answer; see docs/formats.md. */

import type { Bundle, OpenOptions } from "../bundle/bundle.js";
import { readSafetensors } from "../bundle/safetensors.js";
import {
  DecodeError,
  type Decoder,
  decodeJson,
  integer,
  listOf,
  mapOf,
  maybe,
  number,
  optional,
  required,
  struct,
  text,
} from "../core/decode.js";
import { CompatibilityError, mismatch, VerificationError } from "../core/errors.js";
import { CONFORMANCE_FILE, CONFORMANCE_TENSORS_FILE } from "../core/manifest.js";
import { type SamplerSpec, samplerSpec } from "../core/sampling.js";
import type { Numbers, Tensor } from "../core/tensor.js";
import { quoted } from "../core/text.js";

const VECTORS_VERSION = 1;

/** The first noise of a seed, to the bit. */
export interface NoiseVector {
  readonly seed: number;
  readonly shape: readonly number[];
  readonly sha256: string;
}

/** A prompt, its tokens, and the hidden states that the denoiser reads, of the base. */
export interface TextVector {
  readonly prompt: string;
  readonly prompt_syntax: string;
  readonly ids: readonly (readonly number[])[];
  readonly weights: readonly (readonly number[])[];
  readonly values: readonly number[];
  readonly tolerance: number;
}

/** One call of a graph, with an adapter at weight 1 or the base. */
export interface CallVector {
  readonly graph: string;
  readonly adapter: string | undefined;
  readonly inputs: Readonly<Record<string, string>>;
  readonly values: readonly number[];
  readonly tolerance: number;
}

/** A sampler's run from noise, its network replaced by noise. */
export interface SamplerVector {
  readonly name: string;
  readonly spec: SamplerSpec;
  readonly shape: readonly number[];
  readonly seed: number;
  readonly output_seed: number;
  readonly timesteps: readonly number[];
  readonly states: string;
  readonly tolerance: number;
}

/** A whole picture of a task with its own adapter, from prompt to pixels. */
export interface PictureVector {
  readonly task: string;
  readonly prompt: string;
  readonly seed: number;
  readonly steps: number;
  readonly image: string | undefined;
  readonly mask: string | undefined;
  readonly values: readonly number[];
  readonly tolerance: number;
}

/** `conformance.json`. */
export interface Vectors {
  readonly format_version: number;
  readonly grid: number;
  readonly noise: readonly NoiseVector[];
  readonly texts: readonly TextVector[];
  readonly calls: readonly CallVector[];
  readonly samplers: readonly SamplerVector[];
  readonly pictures: readonly PictureVector[];
}

const numbers = listOf(number());
const shape = listOf(integer(0));

/** A run of a sampler, as a file has it. */
export const samplerVector: Decoder<SamplerVector> = struct<SamplerVector>({
  name: required(text),
  spec: required(samplerSpec),
  shape: required(shape),
  seed: required(integer()),
  output_seed: required(integer()),
  timesteps: required(numbers),
  states: required(text),
  tolerance: required(number()),
});

const vectorsDecoder = struct<Vectors>({
  format_version: optional(integer(), VECTORS_VERSION),
  grid: optional(integer(1), 8),
  noise: optional(listOf(struct<NoiseVector>({ seed: required(integer()), shape: required(shape), sha256: required(text) })), []),
  texts: optional(
    listOf(
      struct<TextVector>({
        prompt: required(text),
        prompt_syntax: required(text),
        ids: required(listOf(listOf(integer()))),
        weights: required(listOf(numbers)),
        values: required(numbers),
        tolerance: required(number()),
      }),
    ),
    [],
  ),
  calls: optional(
    listOf(
      struct<CallVector>({
        graph: required(text),
        adapter: maybe(text),
        inputs: required(mapOf(text)),
        values: required(numbers),
        tolerance: required(number()),
      }),
    ),
    [],
  ),
  samplers: optional(listOf(samplerVector), []),
  pictures: optional(
    listOf(
      struct<PictureVector>({
        task: required(text),
        prompt: required(text),
        seed: required(integer()),
        steps: required(integer()),
        image: maybe(text),
        mask: maybe(text),
        values: required(numbers),
        tolerance: required(number()),
      }),
    ),
    [],
  ),
});

/** The vectors and the tensors that they name. */
export class ConformanceVectors {
  readonly vectors: Vectors;
  readonly #tensors: ReadonlyMap<string, Tensor>;

  constructor(vectors: Vectors, tensors: ReadonlyMap<string, Tensor>) {
    this.vectors = vectors;
    this.#tensors = tensors;
  }

  /** One of the tensors beside. Raises a `VerificationError` where there is none of that name. */
  tensor<D extends Numbers>(name: string): Tensor<D> {
    const tensor = this.#tensors.get(name);
    if (tensor === undefined) {
      throw new VerificationError(mismatch(CONFORMANCE_TENSORS_FILE, `a tensor ${name}`, "none", "build the bundle again"));
    }
    return tensor as Tensor<D>;
  }
}

/** The vectors of a bundle that has some. Raises a `CompatibilityError` where it has none, a `VerificationError` where they are damaged. */
export async function readVectors(bundle: Bundle, options: OpenOptions = {}): Promise<ConformanceVectors> {
  const where = `bundle ${quoted(bundle.name)}`;
  if (!Object.hasOwn(bundle.manifest.files, CONFORMANCE_FILE)) {
    const found = "none, it is of an older build or merged";
    throw new CompatibilityError(mismatch(where, `conformance vectors (${CONFORMANCE_FILE})`, found, "build it again"));
  }
  try {
    const vectors = decodeJson(await bundle.read(CONFORMANCE_FILE, options), vectorsDecoder);
    if (vectors.format_version !== VECTORS_VERSION) {
      const found = `version ${vectors.format_version}`;
      throw new VerificationError(mismatch(where, `conformance vectors of version ${VECTORS_VERSION}`, found, "update quad"));
    }
    const content = await bundle.read(CONFORMANCE_TENSORS_FILE, options);
    return new ConformanceVectors(vectors, readSafetensors(CONFORMANCE_TENSORS_FILE, content).tensors);
  } catch (error) {
    if (!(error instanceof DecodeError)) throw error;
    throw new VerificationError(mismatch(where, "conformance vectors", `something else (${error.message})`, "build it again"));
  }
}
