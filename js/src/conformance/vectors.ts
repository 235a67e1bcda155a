/** `conformance.json` and the tensors beside it: inputs that any runtime can be fed with, and what it shall answer; see docs/formats.md. */

import type { Bundle, OpenOptions } from "../bundle/bundle.js";
import { readSafetensors } from "../bundle/safetensors.js";
import {
  type Decoded,
  DecodeError,
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
import { samplerSpec } from "../core/sampling.js";
import type { Numbers, Tensor } from "../core/tensor.js";
import { quoted } from "../core/text.js";

const VECTORS_VERSION = 1;

const numbers = listOf(number());
const shape = listOf(integer(0));

const noiseVector = struct({ seed: required(integer()), shape: required(shape), sha256: required(text) });
const textVector = struct({
  prompt: required(text),
  prompt_syntax: required(text),
  ids: required(listOf(listOf(integer()))),
  weights: required(listOf(numbers)),
  values: required(numbers),
  tolerance: required(number()),
});
const callVector = struct({
  graph: required(text),
  adapter: maybe(text),
  inputs: required(mapOf(text)),
  values: required(numbers),
  tolerance: required(number()),
});
/** A run of a sampler, as a file has it. */
export const samplerVector = struct({
  name: required(text),
  spec: required(samplerSpec),
  shape: required(shape),
  seed: required(integer()),
  output_seed: required(integer()),
  timesteps: required(numbers),
  states: required(text),
  tolerance: required(number()),
});
const pictureVector = struct({
  task: required(text),
  prompt: required(text),
  seed: required(integer()),
  steps: required(integer()),
  image: maybe(text),
  mask: maybe(text),
  values: required(numbers),
  tolerance: required(number()),
});
const vectorsDecoder = struct({
  format_version: optional(integer(), VECTORS_VERSION),
  grid: optional(integer(1), 8),
  noise: optional(listOf(noiseVector), []),
  texts: optional(listOf(textVector), []),
  calls: optional(listOf(callVector), []),
  samplers: optional(listOf(samplerVector), []),
  pictures: optional(listOf(pictureVector), []),
});

/** The first noise of a seed, to the bit. */
export type NoiseVector = Decoded<typeof noiseVector>;
/** A prompt, its tokens, and the hidden states that the denoiser reads, of the base. */
export type TextVector = Decoded<typeof textVector>;
/** One call of a graph, with an adapter at weight 1 or the base. */
export type CallVector = Decoded<typeof callVector>;
/** A sampler's run from noise, its network replaced by noise. */
export type SamplerVector = Decoded<typeof samplerVector>;
/** A whole picture of a task with its own adapter, from prompt to pixels. */
export type PictureVector = Decoded<typeof pictureVector>;
/** `conformance.json`. */
export type Vectors = Decoded<typeof vectorsDecoder>;

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
