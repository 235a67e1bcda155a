/** `QuadPipeline`: pictures from a bundle, tasks by swapping buffers. Names are those of the Python class, which follows diffusers. */

import { AdapterStore } from "../adapters/store.js";
import { type Bundle, type OpenOptions, openBundle, TINY_DECODER } from "../bundle/bundle.js";
import type { ByteCache } from "../bundle/cache.js";
import { sourceOf } from "../bundle/places.js";
import type { BundleSource } from "../bundle/source.js";
import { DEFAULT_GROW_PX } from "../conditioning/condition.js";
import { besideOf } from "../conditioning/denoising.js";
import { parseEmbeddings, WordVectors } from "../conditioning/embeddings.js";
import { statedSizes } from "../conditioning/size_conditions.js";
import { TextMemo } from "../conditioning/text_memo.js";
import { Tokenizer } from "../conditioning/tokenizer.js";
import type { AdapterManifest } from "../core/adapter_manifest.js";
import { mismatch, requireObject, UsageError } from "../core/errors.js";
import { type BundleManifest, EMBEDDINGS_FILE, pictureSizes, TOKENIZER_FILE } from "../core/manifest.js";
import { UNET } from "../core/slots.js";
import type { TaskSpec } from "../core/task.js";
import type { Float } from "../core/tensor.js";
import { quoted } from "../core/text.js";
import { Engine, type EngineOptions } from "../engine/engine.js";
import { type Graph, type MemoryPlan, openGraphs } from "../engine/graph.js";
import { mergedDefaults } from "./adapter_defaults.js";
import { AdapterMethods } from "./adapter_methods.js";
import { expand } from "./batch.js";
import { type CallOptions, checkOptions, joined, type PipelineOutput } from "./call_options.js";
import type { RgbaPicture } from "./output.js";
import { previewPicture } from "./preview.js";
import { type Request, resolve } from "./request.js";
import { type PictureOutput, Stages } from "./stages.js";

/** How a bundle is opened. */
export interface PipelineOptions extends OpenOptions, EngineOptions {
  /** Which graphs stay in memory between calls: all, the U-Net (`balanced`), or none (`minimal`). */
  readonly memory?: MemoryPlan | undefined;
  /** Where downloaded files lie between visits; left out, in the browser's Cache storage. */
  readonly cache?: ByteCache | undefined;
  /** Sent with every request for a file of the bundle. */
  readonly headers?: Readonly<Record<string, string>> | undefined;
}

/** Adapters and tasks by name, as they are now. */
export interface Description {
  readonly adapters: Readonly<Record<string, AdapterManifest>>;
  readonly tasks: Readonly<Record<string, TaskSpec>>;
}

/** One resident model and its adapters. */
export class QuadPipeline extends AdapterMethods {
  readonly bundle: Bundle;
  readonly engine: string;
  readonly threads: number;
  /** What the user should be told of how it was opened, one line each. */
  readonly notes: readonly string[];
  /** The graphs at work, for who verifies them. */
  readonly stages: Stages;

  private constructor(bundle: Bundle, graphs: ReadonlyMap<string, Graph>, engine: Engine, store: AdapterStore, stages: Stages) {
    super(store, graphs);
    this.bundle = bundle;
    this.engine = engine.name;
    this.threads = engine.threads;
    this.notes = engine.notes;
    this.stages = stages;
  }

  /**
   * Open a bundle: an address, in Node a directory, or any `BundleSource`. Every file is compared with its digest when it is read.
   * Raises an `InputError` where there is no bundle, a `VerificationError` where it was changed, a `BackendError` where it cannot be run.
   */
  static async open(place: string | URL | BundleSource, options: PipelineOptions = {}): Promise<QuadPipeline> {
    requireObject("open", options);
    const bundle = await openBundle(sourceOf(place, options), options);
    const { manifest } = bundle;
    const tokenizer = new Tokenizer(await bundle.read(TOKENIZER_FILE, options), manifest.text);
    const words = Object.hasOwn(manifest.files, EMBEDDINGS_FILE)
      ? parseEmbeddings(bundle.source.name, await bundle.read(EMBEDDINGS_FILE, options), manifest.text, tokenizer.room)
      : new WordVectors();
    const store = new AdapterStore(bundle);
    await store.open(options);
    const engine = await Engine.open(manifest.precision, options);
    const graphs = await openGraphs(bundle, engine, options.memory ?? "keep-all", options);
    const pipe = new QuadPipeline(bundle, graphs, engine, store, new Stages(manifest, graphs, tokenizer, words));
    await pipe.bind(new Map());
    const unet = graphs.get(UNET)!;
    if (unet.inputs.size) besideOf(unet.inputs, manifest.latent);
    return pipe;
  }

  /** `open`, by diffusers' name. */
  static from_pretrained(place: string | URL | BundleSource, options: PipelineOptions = {}): Promise<QuadPipeline> {
    return QuadPipeline.open(place, options);
  }

  /**
   * Make pictures, one after another: Python's `pipe(prompt, ...)`. Raises a `UsageError` for an option that is out of its range, an
   * `InputError` for a picture that is none, a `StoppedError` where the signal gave it up.
   */
  async run(prompt: string | readonly string[] = "", options: CallOptions<QuadPipeline> = {}): Promise<PipelineOutput> {
    checkOptions(options);
    const requests = this.#requests(prompt, options);
    return this.turns.take(async () => {
      const memo = new TextMemo();
      const outputs: PictureOutput[] = [];
      for (const [index, request] of requests.entries()) {
        const progress = (done: number, calls: number): void => options.on_progress?.(index * calls + done, requests.length * calls);
        outputs.push(await this.#picture(request, memo, options, progress));
      }
      return joined(outputs);
    });
  }

  /** A coarse picture of latents `(1, c, h, w)`, in no time: best of `denoised`, which the callback of a call gets. */
  preview(latents: Float): RgbaPicture {
    return previewPicture(this.manifest, latents);
  }

  get manifest(): BundleManifest {
    return this.bundle.manifest;
  }

  /** The tasks this pipeline can do now. */
  get tasks(): ReadonlyMap<string, TaskSpec> {
    return this.store.tasks();
  }

  /** What it can do now, for a page that shows it. */
  describe(): Description {
    const adapters = this.adapters.map((name) => [name, this.adapter_manifest(name)] as const);
    return { adapters: Object.fromEntries(adapters), tasks: Object.fromEntries(this.tasks) };
  }

  /** One graph by its name, the component alone for the bundle's first size. */
  graph(name: string): Graph {
    const graph = this.graphs.get(name);
    if (graph === undefined) {
      throw new UsageError(mismatch("graph", `one of ${[...this.graphs.keys()].join(", ")}`, quoted(name), "choose one of these"));
    }
    return graph;
  }

  /** Give all memory of the graphs back; a call loads what it needs again. */
  async dispose(): Promise<void> {
    await this.turns.take(async () => {
      for (const graph of this.graphs.values()) await graph.giveWay();
    });
  }

  #requests(prompt: string | readonly string[], options: CallOptions<QuadPipeline>): readonly Request[] {
    const { seed = 0, negative_prompt = "", num_images_per_prompt = 1, generator, latents } = options;
    const common = {
      task: options.task,
      adapters: this.chosen,
      image: options.image,
      mask_image: options.mask_image,
      mask_grow: options.mask_grow ?? DEFAULT_GROW_PX,
      num_inference_steps: options.num_inference_steps,
      sampler: options.sampler,
      guidance_scale: options.guidance_scale,
      image_guidance_scale: options.image_guidance_scale,
      guidance_interval: options.guidance_interval,
      tiny_decoder: options.tiny_decoder ?? false,
      strength: options.strength,
      width: options.width,
      height: options.height,
      sizes: statedSizes(options),
      prompt_syntax: options.prompt_syntax ?? "a1111",
    };
    return expand(common, { prompt, negative_prompt, num_images_per_prompt, seed, generator, latents });
  }

  async #picture(
    request: Request,
    memo: TextMemo,
    { signal, callback_on_step_end: callback, output_type: outputType = "rgba" }: CallOptions<QuadPipeline>,
    progress: (done: number, calls: number) => void,
  ): Promise<PictureOutput> {
    const { manifest } = this;
    const presets = { adapters: this.store.defaults(), samplers: manifest.samplers ?? {}, merged: mergedDefaults(manifest) };
    const tinyDecoder = Object.hasOwn(manifest.components, TINY_DECODER);
    const offer = { tasks: this.tasks, schedule: manifest.schedule, presets, sizes: pictureSizes(manifest), tinyDecoder };
    const resolved = resolve(request, offer);
    const mix = await this.mix(resolved.weights);
    const prepared = await this.stages.prepare(request, resolved, mix, memo, signal);
    this.active = mix.weights;
    const x0 = await this.stages.denoise(
      prepared,
      async (step, timestep, tensors, calls) => {
        await callback?.(this, step, timestep, tensors);
        progress(step + 1, calls);
        // A page draws, and hears its buttons, between two steps.
        await new Promise((go) => setTimeout(go));
      },
      signal,
    );
    return this.stages.decode(prepared, x0, outputType, signal);
  }
}
