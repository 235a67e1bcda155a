/** What a task asks of the graph, and the schedule that its sampler walks; as `quad.core.manifest`. */

import { boolean, type Decoded, integer, listOf, maybe, nullable, number, oneOf, optional, required, struct, text } from "./decode.js";
import { samplerSpec } from "./sampling.js";

export const noiseSchedule = struct({
  steps: optional(integer(), 1000),
  beta_schedule: optional(oneOf("linear", "scaled_linear", "squaredcos_cap_v2"), "squaredcos_cap_v2"),
  beta_start: optional(number(), 0.00085),
  beta_end: optional(number(), 0.012),
  rescale_zero_snr: optional(boolean, true),
  prediction: optional(oneOf("epsilon", "v_prediction", "sample"), "v_prediction"),
  trained_betas: maybe(listOf(number())),
});

/** The diffusion schedule the base was trained with, in diffusers' words. */
export type NoiseSchedule = Decoded<typeof noiseSchedule>;

export const taskSpec = struct({
  adapter: required(nullable(text)),
  sampler: required(samplerSpec),
  condition: required(oneOf("none", "image", "masked-image", "cut-image")),
  mask: required(oneOf("ones", "zeros", "input")),
  guidance: optional(number(), 1),
  strength: maybe(number()),
  blend: maybe(boolean),
  image_guidance: maybe(number()),
  /** Shares of the noise schedule, 0 is noise and 1 the picture, between which guidance counts; undefined, everywhere. */
  guidance_interval: maybe(listOf(number(), 2, 2)),
});

/** How one task conditions the graph. */
export type TaskSpec = Decoded<typeof taskSpec>;

/** Whether the user of a task has to give a picture. */
export function readsPicture(spec: TaskSpec): boolean {
  const cut = spec.condition === "cut-image" && spec.mask === "input";
  return spec.condition === "image" || spec.condition === "masked-image" || cut || spec.strength !== undefined || spec.blend === true;
}
