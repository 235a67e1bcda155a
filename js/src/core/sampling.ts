/** How a sampler walks: its kind, the settings that diffusers' schedulers have, and a solved table; as `quad.core.sampling`. */

import { boolean, type Decoded, integer, listOf, maybe, nullable, number, oneOf, optional, required, struct, text } from "./decode.js";

/** What files may say at most: numbers beyond it are damage, or meant to take all memory. */
export const MOST_STEPS = 100_000;

export const SAMPLER_KINDS = [
  "ddim",
  "ddpm",
  "pndm",
  "euler",
  "euler-ancestral",
  "heun",
  "lms",
  "dpmsolver++",
  "sde-dpmsolver++",
  "dpmsolver-sde",
  "dpmsolver",
  "unipc",
  "lcm",
  "tcd",
  "olss",
] as const;

export type SamplerKind = (typeof SAMPLER_KINDS)[number];

const positive = number(Number.MIN_VALUE);

export const samplerSettings = struct({
  timestep_spacing: optional(oneOf("leading", "trailing", "linspace"), "trailing"),
  steps_offset: optional(integer(0), 0),
  set_alpha_to_one: optional(boolean, true),
  clip_sample_range: optional(nullable(positive), null),
  sigmas: optional(oneOf("timesteps", "karras", "exponential"), "timesteps"),
  sigma_min: optional(nullable(positive), null),
  sigma_max: optional(nullable(positive), null),
  final_sigmas_type: optional(oneOf("zero", "sigma_min"), "zero"),
  solver_order: optional(oneOf(1, 2, 3), 2),
  solver_type: optional(nullable(oneOf("midpoint", "heun", "bh1", "bh2")), null),
  lower_order_final: optional(boolean, true),
  euler_at_final: optional(boolean, false),
  lambda_min_clipped: optional(nullable(number()), null),
  disable_corrector: optional(listOf(integer()), []),
  skip_prk_steps: optional(boolean, true),
  original_inference_steps: optional(integer(1), 50),
  timestep_scaling: optional(number(), 10),
  variance_type: optional(oneOf("fixed_small", "fixed_large"), "fixed_small"),
  eta: optional(number(0, 1), 0.3),
});

/** Settings of one sampler; each kind reads those that its diffusers class has. */
export type SamplerSettings = Decoded<typeof samplerSettings>;

/** The settings of a sampler that states none, some of them replaced. */
export function settingsWith(changes: Partial<SamplerSettings> = {}): SamplerSettings {
  return { ...samplerSettings({}, "$"), ...changes };
}

const olssTable = struct({
  timesteps: required(listOf(integer())),
  w: required(listOf(number())),
  v: required(listOf(listOf(number()))),
});

/** A solved OLSS sampler: kept timesteps, the noise's weight in each step, and row k the k + 1 weights of the outputs so far. */
export type OlssTable = Decoded<typeof olssTable>;

export const samplerSpec = struct({
  kind: required(oneOf(...SAMPLER_KINDS)),
  steps: required(integer(1, MOST_STEPS)),
  olss: optional(nullable(olssTable), null),
  settings: maybe(samplerSettings),
});

/** The sampler of a task; without settings it has those of `settingsWith()`. */
export type SamplerSpec = Decoded<typeof samplerSpec>;

export const adapterDefaults = struct({
  sampler: optional(nullable(text), null),
  guidance: optional(nullable(number()), null),
  trigger_words: optional(nullable(text), null),
});

/** How an adapter is meant to be run; what the caller of a picture says goes before it. */
export type AdapterDefaults = Decoded<typeof adapterDefaults>;
