/** The backend that makes pictures in the page itself, by `@quad/runtime` in a worker: the same pictures as the server's, from the same seed. */

import { BackendError } from "./backend.js";
import { adapterCards, bundleCard } from "./device-card.js";
import { Packs } from "./device-packs.js";
import { pixelsOf, pngOf } from "./device-pixels.js";

/** @typedef {import("./backend.js").Backend} Backend */

/**
 * Open the bundle in a worker.
 *
 * @type {import("./backend.js").OpenDeviceBackend}
 */
export async function openDeviceBackend(place, { token, signal, onProgress }) {
  const folder = new URL(place.runtime, document.baseURI);
  const bundle = new URL(place.bundle, document.baseURI);
  const runtime = await import(new URL("runtime.js", folder).href);
  const worker = new Worker(new URL("worker.js", folder), { type: "module" });
  const options = {
    wasmPaths: folder.href,
    headers: token === null ? {} : { Authorization: `Bearer ${token}` },
    ...(signal ? { signal } : {}),
    /** @type {(file: string, loaded: number, total?: number) => void} */
    onProgress: (file, loaded, total) => onProgress?.(file, loaded, total ?? loaded),
  };
  try {
    const pipe = await Promise.race([runtime.WorkerPipeline.open(worker, bundle.href, options), failureOf(worker)]);
    const packs = new Packs(pipe);
    await packs.restore();
    return new DeviceBackend(runtime, pipe, worker, packs);
  } catch (error) {
    worker.terminate();
    throw asBackendError(error, signal);
  }
}

/** @implements {Backend} */
class DeviceBackend {
  label = "on this device";
  #runtime;
  #pipe;
  #worker;
  #packs;
  /** @type {Promise<unknown>} */
  #latest = Promise.resolve();

  /**
   * @param {any} runtime the module of the page's runtime
   * @param {any} pipe a `WorkerPipeline`
   * @param {Worker} worker
   * @param {Packs} packs
   */
  constructor(runtime, pipe, worker, packs) {
    this.#runtime = runtime;
    this.#pipe = pipe;
    this.#worker = worker;
    this.#packs = packs;
    /** @type {import("./backend.js").Capability[]} */
    const capabilities = ["install", "rollback", ...(pipe.manifest.preview ? /** @type {const} */ (["preview"]) : [])];
    /** @type {ReadonlySet<import("./backend.js").Capability>} */
    this.capabilities = new Set(capabilities);
  }

  async card() {
    return bundleCard(this.#runtime, this.#pipe, await this.#pipe.describe(), this.#packs);
  }

  async adapters() {
    return adapterCards(await this.#pipe.describe(), this.#packs);
  }

  /** @type {Backend["run"]} */
  run(request, options = {}) {
    return this.#inTurn(() => this.#run(request, options), options.signal);
  }

  /** @type {Backend["installAdapter"]} */
  installAdapter(file, { name, signal }) {
    return this.#inTurn(async () => {
      await this.#packs.install(name, file);
      return { name, facts: [], notes: [] };
    }, signal);
  }

  /** @type {Backend["rollback"]} */
  rollback(name) {
    return this.#inTurn(() => this.#packs.rollback(name));
  }

  close() {
    this.#worker.terminate();
  }

  /**
   * @param {import("./backend.js").PictureRequest} request
   * @param {import("./backend.js").RunOptions} options
   * @returns {Promise<import("./backend.js").Picture>}
   */
  async #run(request, { signal, onProgress, onPreview }) {
    const begin = performance.now();
    const weights = request.adapters ?? (await this.#ownAdapter(request.task));
    const names = Object.keys(weights);
    await (names.length ? this.#pipe.set_adapters(names, Object.values(weights)) : this.#pipe.disable_lora());
    const size = request.size ? { width: request.size[0], height: request.size[1] } : {};
    const output = await this.#pipe.run(request.prompt, {
      task: request.task,
      seed: request.seed,
      negative_prompt: request.negativePrompt,
      sampler: request.sampler,
      num_inference_steps: request.steps,
      guidance_scale: request.guidance,
      strength: request.strength,
      image_guidance_scale: request.imageGuidance,
      image: request.image && (await pixelsOf(request.image)),
      mask_image: request.mask && (await pixelsOf(request.mask)),
      ...size,
      signal,
      on_progress: onProgress,
      callback_on_step_end: onPreview && this.#previews(onPreview),
    });
    const picture = await pngOf(output.images[0]);
    // It may have been done when it was told to stop.
    signal?.throwIfAborted();
    return {
      picture,
      seed: output.seed,
      seconds: (performance.now() - begin) / 1000,
      timings: output.timings_ms,
      memory: null,
      sampler: output.sampler,
      guidance: output.guidance,
      adapters: Object.fromEntries(output.adapters),
      notes: output.notes,
    };
  }

  /**
   * What a request that names no adapters is run with.
   *
   * @param {string} task
   * @returns {Promise<Record<string, number>>}
   */
  async #ownAdapter(task) {
    const { tasks } = await this.#pipe.describe();
    const adapter = Object.hasOwn(tasks, task) ? tasks[task].adapter : null;
    return adapter === null ? {} : { [adapter]: 1 };
  }

  /** @param {(picture: ImageBitmap) => void} onPreview */
  #previews(onPreview) {
    let latest = -1;
    /** @type {(pipe: unknown, step: number, timestep: number, tensors: { denoised: unknown }) => Promise<void>} */
    return async (_pipe, step, _timestep, { denoised }) => {
      const { data, width, height } = await this.#pipe.preview(denoised);
      const picture = await createImageBitmap(new ImageData(data, width, height));
      if (step < latest) return;
      latest = step;
      onPreview(picture);
    };
  }

  /**
   * One after another: adapters are set and a picture is made with them before the next one sets its own.
   *
   * @template T
   * @param {() => Promise<T>} work
   * @param {AbortSignal} [signal]
   * @returns {Promise<T>}
   */
  async #inTurn(work, signal) {
    const turn = this.#latest.then(() => {
      signal?.throwIfAborted();
      return work();
    });
    this.#latest = turn.catch(() => undefined);
    try {
      return await turn;
    } catch (error) {
      throw asBackendError(error, signal);
    }
  }
}

/**
 * Rejects where the worker's script does not come or breaks.
 *
 * @param {Worker} worker
 * @returns {Promise<never>}
 */
function failureOf(worker) {
  return new Promise((_, reject) => {
    worker.addEventListener("error", (event) => {
      event.preventDefault();
      reject(new Error(`device: expected a worker that starts, found ${event.message || "none"}; load the page again`));
    });
  });
}

/**
 * @param {any} error
 * @param {AbortSignal} [signal]
 */
function asBackendError(error, signal) {
  if (error?.name === "StoppedError" || signal?.aborted) return new DOMException("cancelled", "AbortError");
  return error instanceof BackendError ? error : new BackendError(String(error?.message ?? error), error?.name);
}
