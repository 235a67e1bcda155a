/** The three stages of a picture: prepare (text, pictures), denoise, decode; as `quad.runtime.stages`. */

import type { Weight } from "../adapters/block_weights.js";
import type { AdapterMix } from "../adapters/buffers.js";
import { TINY_DECODER } from "../bundle/bundle.js";
import { type DenoisingRun, drawNoise, planRun } from "../conditioning/denoising.js";
import type { WordVectors } from "../conditioning/embeddings.js";
import { countsAt, isGuided } from "../conditioning/guidance.js";
import { type PromptTokens, readPrompt } from "../conditioning/prompt_chunks.js";
import { textFeatures } from "../conditioning/text_features.js";
import type { TextMemo } from "../conditioning/text_memo.js";
import type { Tokenizer } from "../conditioning/tokenizer.js";
import { BackendError, mismatch, throwIfAborted } from "../core/errors.js";
import { type BundleManifest, pictureSizes } from "../core/manifest.js";
import { graphName, type PictureSize, sameSize } from "../core/picture_size.js";
import { TEXT_ENCODER, UNET } from "../core/slots.js";
import type { TaskSpec } from "../core/task.js";
import { type Float, isFinite32 } from "../core/tensor.js";
import { general } from "../core/text.js";
import type { Graph } from "../engine/graph.js";
import type { Seed } from "../noise/generator.js";
import { splitOutput } from "../samplers/contract.js";
import { samplerText } from "../samplers/names.js";
import { planSampling, type SamplingRun } from "../samplers/run.js";
import { asFloats, type RgbaPicture, rgba, toFloats, toPicture } from "./output.js";
import type { Request, Resolved } from "./request.js";

/** `rgba` pictures, `np` floats `(1, H, W, 3)` in [0, 1], or `latent`, the clean latent `(1, c, h, w)`. */
export type OutputType = "rgba" | "np" | "latent";

/** The result of one picture. */
export interface PictureOutput {
  readonly image: RgbaPicture | Float;
  readonly notes: readonly string[];
  /** `text_encoder`, `vae_encoder`, `unet` (all steps), `vae_decoder`, `total`. */
  readonly timings_ms: Readonly<Record<string, number>>;
  readonly task: string;
  readonly adapters: ReadonlyMap<string, Weight>;
  readonly seed: Seed;
  readonly sampler: string;
  readonly guidance: number;
}

/** What a step led to. */
export interface StepTensors {
  readonly latents: Float;
  /** The clean latent as the network saw it. */
  readonly denoised: Float;
}

export type StepListener = (step: number, timestep: number, tensors: StepTensors, calls: number) => void | Promise<void>;

/** A picture up to its first step, to be denoised once. */
export interface Prepared {
  readonly request: Request;
  readonly resolved: Resolved;
  readonly mix: AdapterMix;
  readonly denoising: DenoisingRun;
  readonly sampling: SamplingRun;
  readonly noise: Float;
  readonly notes: readonly string[];
  readonly clocks: Clocks;
}

/** Times of one picture, by what they were spent on. */
class Clocks {
  readonly timings: Record<string, number> = {};

  async time<T>(name: string, work: () => Promise<T>): Promise<T> {
    const start = performance.now();
    try {
      return await work();
    } finally {
      this.timings[name] = (this.timings[name] ?? 0) + performance.now() - start;
    }
  }
}

/** The graphs of one bundle at work. */
export class Stages {
  readonly #manifest: BundleManifest;
  readonly #graphs: ReadonlyMap<string, Graph>;
  readonly #tokenizer: Tokenizer;
  readonly #words: WordVectors;

  constructor(manifest: BundleManifest, graphs: ReadonlyMap<string, Graph>, tokenizer: Tokenizer, words: WordVectors) {
    this.#manifest = manifest;
    this.#graphs = graphs;
    this.#tokenizer = tokenizer;
    this.#words = words;
  }

  /** The graph of a component for pictures of a size, and a group of adapters counted from 0. */
  graph(component: string, size: PictureSize, group = 0): Graph {
    const isFirst = sameSize(size, pictureSizes(this.#manifest)[0]);
    return this.#graphs.get(graphName(component, isFirst ? null : size, group))!;
  }

  /** The tokens of a prompt. */
  tokens(prompt: string, syntax: Request["prompt_syntax"]): PromptTokens {
    return readPrompt(this.#tokenizer, prompt, syntax, this.#words);
  }

  /** Hidden states of a prompt's tokens, with the adapters that the text encoder is bound to. */
  hidden(tokens: PromptTokens, signal?: AbortSignal): Promise<Float> {
    return textFeatures(this.#graphs.get(TEXT_ENCODER)!, tokens, this.#manifest.text, signal);
  }

  /** Everything before the first step. */
  async prepare(request: Request, resolved: Resolved, mix: AdapterMix, memo: TextMemo, signal?: AbortSignal): Promise<Prepared> {
    const { spec, size } = resolved;
    const { latent, schedule, text } = this.#manifest;
    const clocks = new Clocks();
    const textNotes = guidanceNotes(spec, request.negative_prompt);
    const { rng, noise } = drawNoise(request.seed, request.latents, latent, size, request.generator);
    const unet = this.graph(UNET, size, mix.group);
    const encode = (prompts: readonly string[]): Promise<readonly Float[]> =>
      clocks.time(TEXT_ENCODER, () => this.#encode(prompts, request, mix, textNotes, signal));
    const encoders = {
      unetInputs: async () => {
        if (!unet.inputs.size) await unet.loaded(async () => undefined);
        return unet.inputs;
      },
      unet: (inputs: Parameters<Graph["run"]>[0]) => unet.run(inputs, signal),
      texts: (prompts: readonly string[]) => memo.encode(mix, encode, prompts),
      picture: (image: Float) => clocks.time("vae_encoder", () => this.graph("vae_encoder", size).run(new Map([["image", image]]), signal)),
    };
    const pictures = { image: request.image, mask: request.mask_image, maskGrowPx: request.mask_grow };
    const { prompt, negative_prompt: negativePrompt, sizes } = request;
    const trainingSteps = schedule.steps;
    const inputs = { task: resolved.task, spec, pictures, prompt, negativePrompt, noise, size, sizes, latent, text, trainingSteps };
    return clocks.time("total", async () => {
      const denoising = await planRun(encoders, inputs);
      const sampling = planSampling(spec.sampler, schedule, rng, denoising.start);
      const notes = [
        ...denoising.condition.notes,
        ...resolved.notes,
        ...mix.notes,
        ...textNotes,
        ...intervalNotes(spec, sampling, trainingSteps),
      ];
      return { request, resolved, mix, denoising, sampling, noise, notes, clocks };
    });
  }

  /** From noise to the clean latent. */
  async denoise(prepared: Prepared, listen: StepListener | undefined, signal?: AbortSignal): Promise<Float> {
    const { clocks, sampling, mix, denoising } = prepared;
    const unet = this.graph(UNET, prepared.resolved.size, mix.group);
    let seen: { readonly x: Float; readonly output: Float } | undefined;
    const network = async (x: Float, timestep: number): Promise<Float> => {
      throwIfAborted(signal, `task ${prepared.resolved.task}`);
      const output = await denoising.network(x, timestep);
      seen = { x, output };
      return output;
    };
    const onStep = async (step: number, timestep: number, latents: Float): Promise<void> => {
      if (listen === undefined) return;
      const { x, output } = seen!;
      const abar = sampling.sampling.abars[sampling.first + step]!;
      const { x0 } = splitOutput(this.#manifest.schedule.prediction, Float64Array.from(output.data), Float64Array.from(x.data), abar);
      await listen(step, timestep, { latents, denoised: { data: Float32Array.from(x0), shape: x.shape } }, sampling.calls);
    };
    return clocks.time("total", () =>
      clocks.time(UNET, () =>
        unet.loaded(async () => {
          await unet.bind(mix);
          return sampling.run(network, prepared.noise, onStep);
        }),
      ),
    );
  }

  /** The picture of a clean latent. Raises a `BackendError` where the engine gave numbers that are not finite. */
  async decode(prepared: Prepared, x0: Float, outputType: OutputType, signal?: AbortSignal): Promise<PictureOutput> {
    const { resolved, request, mix, clocks } = prepared;
    const image = outputType === "latent" ? x0 : await clocks.time("total", () => this.#picture(prepared, x0, outputType, signal));
    return {
      image,
      notes: [...new Set(prepared.notes)],
      timings_ms: clocks.timings,
      task: resolved.task,
      adapters: mix.weights,
      seed: request.seed,
      sampler: samplerText(resolved.spec.sampler),
      guidance: resolved.spec.guidance,
    };
  }

  async #picture(prepared: Prepared, x0: Float, outputType: OutputType, signal?: AbortSignal): Promise<RgbaPicture | Float> {
    const name = prepared.request.tiny_decoder ? TINY_DECODER : "vae_decoder";
    const decoder = this.graph(name, prepared.resolved.size);
    const image = await prepared.clocks.time("vae_decoder", () => decoder.run(new Map([["latent", x0]]), signal));
    if (!isFinite32(image.data)) {
      const way = "use guidance_scale or adapter weights nearer to 1";
      throw new BackendError(mismatch(`graph ${name}`, "a picture of finite numbers", "NaN or Inf", way));
    }
    const { paste } = prepared.denoising.condition;
    if (outputType === "np" && paste === undefined) return toFloats(image);
    const picture = toPicture(image, paste);
    return outputType === "np" ? asFloats(picture) : rgba(picture);
  }

  /** Hidden states of prompts; what the tokenizer notes is added to `notes`. */
  async #encode(
    prompts: readonly string[],
    request: Request,
    mix: AdapterMix,
    notes: string[],
    signal?: AbortSignal,
  ): Promise<readonly Float[]> {
    const encoder = this.#graphs.get(TEXT_ENCODER)!;
    return encoder.loaded(async () => {
      await encoder.bind(mix);
      const hidden: Float[] = [];
      for (const prompt of prompts) {
        const tokens = this.tokens(prompt, request.prompt_syntax);
        const negative = prompt === request.prompt ? "" : "negative ";
        notes.push(...tokens.notes.map((line) => negative + line));
        hidden.push(await this.hidden(tokens, signal));
      }
      return hidden;
    });
  }
}

/** A line where an interval leaves no step of this run guided. */
function intervalNotes(spec: TaskSpec, sampling: SamplingRun, trainingSteps: number): readonly string[] {
  const timesteps = sampling.sampling.timesteps.slice(sampling.first);
  const interval = spec.guidance_interval;
  if (interval === undefined || !isGuided(spec) || timesteps.some((timestep) => countsAt(spec, timestep, trainingSteps))) return [];
  const shown = interval.map(general).join(":");
  return [`guidance interval ${shown}: no step of ${samplerText(spec.sampler)} falls into it, the prompt counts plainly`];
}

/** A line for each wish about guidance that has no effect. */
function guidanceNotes(spec: TaskSpec, negativePrompt: string): string[] {
  if (isGuided(spec)) return [];
  const notes: string[] = [];
  if (spec.guidance < 1) notes.push(`guidance ${general(spec.guidance)}: at 1 and below there is none, the prompt alone counts`);
  if (spec.image_guidance !== undefined && spec.image_guidance < 1) {
    notes.push(`image guidance ${general(spec.image_guidance)}: below 1 there is no guidance, the prompt alone counts`);
  }
  if (spec.guidance_interval !== undefined) notes.push("guidance interval: it counts only with guidance above 1, it was not used");
  if (negativePrompt) notes.push("negative prompt: it counts only with guidance above 1, it was not used");
  return notes;
}
