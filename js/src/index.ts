/** `@quad/runtime`: pictures from a quad bundle in a browser or in Node, on onnxruntime-web. */

export { BlockWeights, type Weight, type WeightInput } from "./adapters/block_weights.js";
export type { AdapterFiles } from "./adapters/file.js";
export { type Bundle, type OpenOptions, openBundle } from "./bundle/bundle.js";
export { type ByteCache, CacheStorageCache, defaultCache, MemoryCache, OriginFileCache } from "./bundle/cache.js";
export { type HttpOptions, HttpSource } from "./bundle/http_source.js";
export { type BundleSource, DirectorySource, MemorySource, type ReadOptions } from "./bundle/source.js";
export type { Picture } from "./conditioning/picture.js";
export { type Check, verify } from "./conformance/verify.js";
export type { AdapterManifest } from "./core/adapter_manifest.js";
export {
  BackendError,
  CompatibilityError,
  InputError,
  QuadError,
  RefusedError,
  StoppedError,
  UnsupportedError,
  UsageError,
  VerificationError,
} from "./core/errors.js";
export type { BundleManifest } from "./core/manifest.js";
export type { TaskSpec } from "./core/task.js";
export type { Float, Tensor } from "./core/tensor.js";
export type { SignedPack } from "./delivery/repository.js";
export { MEMORY_PLANS, type MemoryPlan } from "./engine/graph.js";
export { Generator, type Seed } from "./noise/generator.js";
export type { AdapterSource } from "./pipeline/adapter_methods.js";
export type { CallOptions, PipelineOutput } from "./pipeline/call_options.js";
export type { RgbaPicture } from "./pipeline/output.js";
export { type Description, type PipelineOptions, QuadPipeline } from "./pipeline/pipeline.js";
export type { OutputType, StepTensors } from "./pipeline/stages.js";
export { SAMPLER_NAMES } from "./samplers/names.js";
export { WorkerPipeline } from "./worker/client.js";
