/** What a page needs that shows a pipeline in a worker: the entry of `tools/page.mjs`. */

export type { AdapterManifest } from "./core/adapter_manifest.js";
export { type BundleManifest, pictureSizes } from "./core/manifest.js";
export { readsPicture, type TaskSpec } from "./core/task.js";
export { SAMPLER_NAMES, samplerText } from "./samplers/names.js";
export { WorkerPipeline } from "./worker/client.js";
