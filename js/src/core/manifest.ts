/** `bundle.json` and `adapter.json`: what ships, how to run it, and the digests of everything; as `quad.core.manifest`. */

import { adapterName, type MergedAdapter, mergedAdapter } from "./adapter_manifest.js";
import {
  boolean,
  type Decoder,
  type Field,
  integer,
  listOf,
  mapOf,
  maybe,
  number,
  oneOf,
  optional,
  required,
  struct,
  text,
} from "./decode.js";
import { type PictureSize, pictureSize, pixels, sizeText } from "./picture_size.js";
import { type SamplerSettings, samplerSettings } from "./sampling.js";
import { type Sinusoid, sinusoid } from "./sinusoid.js";
import { type NoiseSchedule, noiseSchedule, type TaskSpec, taskSpec } from "./task.js";

export const FORMAT_VERSION = 1;
export const BUNDLE_FILE = "bundle.json";
export const SLOTS_FILE = "slots.json";
export const PROFILE_FILE = "profile.json";
/** With weights of 4 bits: what mends their error, in the slots. */
export const BASE_CORRECTION_FILE = "base_correction.safetensors";
export const TOKENIZER_FILE = "tokenizer/tokenizer.json";
export const EMBEDDINGS_FILE = "embeddings.safetensors";
export const CONFORMANCE_FILE = "conformance.json";
export const CONFORMANCE_TENSORS_FILE = "conformance.safetensors";

/** One shipped file. */
export interface FileEntry {
  readonly sha256: string;
  readonly size_bytes: number;
}

/** The files of a graph, entries among the bundle's. */
export interface GraphFiles {
  readonly file: string;
  readonly data_files: readonly string[];
}

/** A graph for one size of pictures, and `WIDTHxHEIGHT` -> the graph for each further one. */
export interface SizedGraphs extends GraphFiles {
  readonly sizes: Readonly<Record<string, GraphFiles>> | undefined;
}

/** One graph of the pipeline, and those of further groups of adapters. */
export interface Component extends SizedGraphs {
  readonly groups: readonly SizedGraphs[] | undefined;
}

export type Beside = "condition" | "raw-condition" | "mask";

/** The latent space: `z_model = (z_vae - shift) * scale` per channel, and what follows the latent in the U-Net's `sample`. */
export interface LatentSpec {
  readonly channels: number;
  readonly factor: number;
  readonly scale: readonly number[];
  readonly shift: readonly number[];
  readonly beside: readonly Beside[] | undefined;
}

/** A linear map from a model latent to colours in [-1, 1]: 3 rows of weights, and the colour of an empty latent. */
export interface LatentPreview {
  readonly weights: readonly (readonly number[])[];
  readonly bias: readonly number[];
}

/**
 * The text encoder's input, and its output's width. `pooled`: numbers of the prompt as a whole, in rows behind its hidden states; `sizes`:
 * the embedding of numbers that say the picture's size; `zeros_for_empty`: an empty negative prompt is rows of zeros.
 */
export interface TextSpec {
  readonly length: number;
  readonly pad_id: number;
  readonly hidden: number;
  readonly first_vector_id: number | undefined;
  readonly chunks: number | undefined;
  readonly pooled: number | undefined;
  readonly sizes: Sinusoid | undefined;
  readonly zeros_for_empty: boolean | undefined;
}

/** `bundle.json`. */
export interface BundleManifest {
  readonly format_version: number;
  readonly name: string;
  readonly target: string;
  readonly precision: string;
  readonly size: number;
  readonly components: Readonly<Record<string, Component>>;
  readonly files: Readonly<Record<string, FileEntry>>;
  readonly adapters: readonly string[];
  readonly tasks: Readonly<Record<string, TaskSpec>>;
  readonly schedule: NoiseSchedule;
  readonly latent: LatentSpec;
  readonly text: TextSpec;
  readonly engines: readonly string[];
  readonly parents: Readonly<Record<string, string>>;
  readonly quad_version: string;
  readonly sizes: readonly PictureSize[] | undefined;
  readonly samplers: Readonly<Record<string, SamplerSettings>> | undefined;
  readonly preview: LatentPreview | undefined;
  readonly merged: readonly MergedAdapter[] | undefined;
  readonly sha256: string;
}

const graphFields: { [K in keyof GraphFiles]-?: Field<GraphFiles[K]> } = {
  file: required(text),
  data_files: optional(listOf(text), []),
};
const sizedFields: { [K in keyof SizedGraphs]-?: Field<SizedGraphs[K]> } = {
  ...graphFields,
  sizes: maybe(mapOf(struct<GraphFiles>(graphFields))),
};
const component = struct<Component>({ ...sizedFields, groups: maybe(listOf(struct<SizedGraphs>(sizedFields))) });

const latentSpec = struct<LatentSpec>({
  channels: required(integer(1, 1024)),
  factor: required(integer(1, 256)),
  scale: required(listOf(number())),
  shift: required(listOf(number())),
  beside: maybe(listOf(oneOf("condition", "raw-condition", "mask"))),
});

export const textSpec: Decoder<TextSpec> = struct<TextSpec>({
  length: required(integer(1, 2 ** 16)),
  pad_id: required(integer(0, 2 ** 31)),
  hidden: required(integer(1, 2 ** 20)),
  first_vector_id: maybe(integer(1, 2 ** 31)),
  chunks: maybe(integer(2, 64)),
  pooled: maybe(integer(1, 2 ** 20)),
  sizes: maybe(sinusoid),
  zeros_for_empty: maybe(boolean),
});

export const bundleManifest: Decoder<BundleManifest> = struct<BundleManifest>({
  format_version: required(integer()),
  name: required(text),
  target: required(text),
  precision: required(text),
  size: required(pixels),
  components: required(mapOf(component)),
  files: required(mapOf(struct<FileEntry>({ sha256: required(text), size_bytes: required(integer(0)) }, true))),
  adapters: required(listOf(adapterName)),
  tasks: required(mapOf(taskSpec)),
  schedule: required(noiseSchedule),
  latent: required(latentSpec),
  text: required(textSpec),
  engines: required(listOf(text)),
  parents: required(mapOf(text)),
  quad_version: required(text),
  sizes: maybe(listOf(pictureSize, 1, 64)),
  samplers: maybe(mapOf(samplerSettings)),
  preview: maybe(struct<LatentPreview>({ weights: required(listOf(listOf(number()), 3, 3)), bias: required(listOf(number(), 3, 3)) })),
  merged: maybe(listOf(mergedAdapter)),
  sha256: optional(text, ""),
});

/** Width and height of the pictures that a bundle can make, first that of a call that asks for none. */
export function pictureSizes(manifest: BundleManifest): readonly [PictureSize, ...PictureSize[]] {
  const [first, ...others] = manifest.sizes ?? [{ width: manifest.size, height: manifest.size }];
  return [first!, ...others];
}

/** The graph for a further size, null for the first, and a group of adapters; one that has none for it does not hang on it. */
export function graphOf(part: Component, size: PictureSize | null, group: number): GraphFiles {
  const graphs: SizedGraphs = (group ? part.groups?.[group - 1] : undefined) ?? part;
  return (size ? graphs.sizes?.[sizeText(size)] : undefined) ?? graphs;
}

/** All files of a component. */
export function componentFiles(part: Component): readonly string[] {
  const sized = [part, ...(part.groups ?? [])];
  const graphs = sized.flatMap((group) => [group, ...Object.values(group.sizes ?? {})]);
  return graphs.flatMap((graph) => [graph.file, ...graph.data_files]);
}

/** Rows and columns of latent pixels of a picture. */
export function latentGrid(latent: LatentSpec, size: PictureSize): readonly [number, number] {
  return [Math.floor(size.height / latent.factor), Math.floor(size.width / latent.factor)];
}

/** Chunks of a prompt that are read at most. */
export const mostChunks = (spec: TextSpec): number => spec.chunks ?? 1;

/** Tokens that the denoiser reads. */
export const contextLength = (spec: TextSpec): number => spec.length * mostChunks(spec);
