/** The options and the result of a call, by Python's names. */

import type { IntervalInput } from "../conditioning/guidance.js";
import type { Picture } from "../conditioning/picture.js";
import type { PromptSyntax } from "../conditioning/prompt_syntax.js";
import { SIZE_NAMES, type SizeConditions } from "../conditioning/size_conditions.js";
import { mismatch, requireObject, UsageError } from "../core/errors.js";
import type { Float } from "../core/tensor.js";
import { quoted } from "../core/text.js";
import type { Generator, Seed } from "../noise/generator.js";
import type { RgbaPicture } from "./output.js";
import type { OutputType, PictureOutput, StepTensors } from "./stages.js";

/** The options of a call to a pipeline `P`; what each means is told in the package's README. */
export interface CallOptions<P = unknown> extends SizeConditions {
  readonly task?: string | undefined;
  readonly image?: Picture | undefined;
  readonly mask_image?: Picture | undefined;
  readonly num_inference_steps?: number | undefined;
  readonly guidance_scale?: number | undefined;
  readonly seed?: Seed | undefined;
  readonly negative_prompt?: string | readonly string[] | undefined;
  /** As in diffusers: called with the step, its timestep, and what it led to; what it throws ends the call. */
  readonly callback_on_step_end?: ((pipe: P, step: number, timestep: number, tensors: StepTensors) => void | Promise<void>) | undefined;
  readonly latents?: Float | undefined;
  readonly mask_grow?: number | undefined;
  readonly strength?: number | undefined;
  readonly image_guidance_scale?: number | undefined;
  readonly guidance_interval?: IntervalInput | undefined;
  /** Decode by the small decoder of a bundle of `quad build --tiny-decoder`. */
  readonly tiny_decoder?: boolean | undefined;
  readonly prompt_syntax?: PromptSyntax | undefined;
  readonly sampler?: string | undefined;
  readonly num_images_per_prompt?: number | undefined;
  readonly generator?: Generator | readonly Generator[] | undefined;
  readonly width?: number | undefined;
  readonly height?: number | undefined;
  readonly output_type?: OutputType | undefined;
  /** Gives the call up: it then rejects with a `StoppedError`. */
  readonly signal?: AbortSignal | undefined;
  /** Called after each network call with how many are done, and how many there are in all pictures. */
  readonly on_progress?: ((done: number, total: number) => void) | undefined;
}

/** The result of one call: times are added up, each note is there once. */
export interface PipelineOutput extends Omit<PictureOutput, "image"> {
  readonly images: readonly (RgbaPicture | Float)[];
  readonly seeds: readonly Seed[];
}

/** Every name of an option. */
export const NAMES: Readonly<Record<keyof CallOptions, true>> = {
  ...(Object.fromEntries(SIZE_NAMES.map((name) => [name, true])) as Record<keyof SizeConditions, true>),
  task: true,
  image: true,
  mask_image: true,
  num_inference_steps: true,
  guidance_scale: true,
  seed: true,
  negative_prompt: true,
  callback_on_step_end: true,
  latents: true,
  mask_grow: true,
  strength: true,
  image_guidance_scale: true,
  guidance_interval: true,
  tiny_decoder: true,
  prompt_syntax: true,
  sampler: true,
  num_images_per_prompt: true,
  generator: true,
  width: true,
  height: true,
  output_type: true,
  signal: true,
  on_progress: true,
};

const FUNCTIONS = ["callback_on_step_end", "on_progress"] as const;

/** Refuse a name that is none, a value that is null or cannot be called, and a type of output that there is not. Raises a `UsageError`. */
export function checkOptions(options: CallOptions<never>): void {
  requireObject("run", options);
  const odd = Object.keys(options).find((name) => !Object.hasOwn(NAMES, name));
  if (odd !== undefined) throw new UsageError(mismatch("run", "options by Python's names", quoted(odd), "see the README"));
  for (const [name, value] of Object.entries(options)) {
    if (value === null) throw new UsageError(mismatch(name, "a value", "null", "leave it out"));
  }
  for (const name of FUNCTIONS) {
    const value = options[name];
    if (value !== undefined && typeof value !== "function") {
      throw new UsageError(mismatch(name, "a function", quoted(value), "give one, or leave it out"));
    }
  }
  const output = options.output_type ?? "rgba";
  if (!["rgba", "np", "latent"].includes(output)) {
    throw new UsageError(mismatch("output_type", "one of rgba, np, latent", quoted(output), "choose one of these"));
  }
}

/** The pictures of one call together: times added up, each note once, the first one's seed. */
export function joined(outputs: readonly PictureOutput[]): PipelineOutput {
  const { image: _, ...first } = outputs[0]!;
  const timings: Record<string, number> = {};
  for (const output of outputs) {
    for (const [name, time] of Object.entries(output.timings_ms)) timings[name] = (timings[name] ?? 0) + time;
  }
  return {
    ...first,
    images: outputs.map((output) => output.image),
    notes: [...new Set(outputs.flatMap((output) => output.notes))],
    timings_ms: timings,
    seeds: outputs.map((output) => output.seed),
  };
}
