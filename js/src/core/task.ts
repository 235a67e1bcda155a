/** What a task asks of the graph, and the schedule that its sampler walks; as `quad.core.manifest`. */

import { boolean, type Decoder, integer, listOf, maybe, nullable, number, oneOf, optional, required, struct, text } from "./decode.js";
import { type SamplerSpec, samplerSpec } from "./sampling.js";

/** The diffusion schedule the base was trained with, in diffusers' words. */
export interface NoiseSchedule {
  readonly steps: number;
  readonly beta_schedule: "linear" | "scaled_linear" | "squaredcos_cap_v2";
  readonly beta_start: number;
  readonly beta_end: number;
  readonly rescale_zero_snr: boolean;
  readonly prediction: "epsilon" | "v_prediction" | "sample";
  readonly trained_betas: readonly number[] | undefined;
}

/** How one task conditions the graph. */
export interface TaskSpec {
  readonly adapter: string | null;
  readonly sampler: SamplerSpec;
  readonly condition: "none" | "image" | "masked-image" | "cut-image";
  readonly mask: "ones" | "zeros" | "input";
  readonly guidance: number;
  readonly strength: number | undefined;
  readonly blend: boolean | undefined;
  readonly image_guidance: number | undefined;
  /** Shares of the noise schedule, 0 is noise and 1 the picture, between which guidance counts; undefined, everywhere. */
  readonly guidance_interval: readonly number[] | undefined;
}

export const noiseSchedule: Decoder<NoiseSchedule> = struct<NoiseSchedule>({
  steps: optional(integer(), 1000),
  beta_schedule: optional(oneOf("linear", "scaled_linear", "squaredcos_cap_v2"), "squaredcos_cap_v2"),
  beta_start: optional(number(), 0.00085),
  beta_end: optional(number(), 0.012),
  rescale_zero_snr: optional(boolean, true),
  prediction: optional(oneOf("epsilon", "v_prediction", "sample"), "v_prediction"),
  trained_betas: maybe(listOf(number())),
});

export const taskSpec: Decoder<TaskSpec> = struct<TaskSpec>({
  adapter: required(nullable(text)),
  sampler: required(samplerSpec),
  condition: required(oneOf("none", "image", "masked-image", "cut-image")),
  mask: required(oneOf("ones", "zeros", "input")),
  guidance: optional(number(), 1),
  strength: maybe(number()),
  blend: maybe(boolean),
  image_guidance: maybe(number()),
  guidance_interval: maybe(listOf(number(), 2, 2)),
});

/** Whether the user of a task has to give a picture. */
export function readsPicture(spec: TaskSpec): boolean {
  const cut = spec.condition === "cut-image" && spec.mask === "input";
  return spec.condition === "image" || spec.condition === "masked-image" || cut || spec.strength !== undefined || spec.blend === true;
}
