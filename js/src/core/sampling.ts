/** How a sampler walks: its kind, the settings that diffusers' schedulers have, and a solved table; as `quad.core.sampling`. */

import { boolean, type Decoder, integer, listOf, maybe, nullable, number, oneOf, optional, required, struct, text } from "./decode.js";

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

/** Settings of one sampler; each kind reads those that its diffusers class has. */
export interface SamplerSettings {
  readonly timestep_spacing: "leading" | "trailing" | "linspace";
  readonly steps_offset: number;
  readonly set_alpha_to_one: boolean;
  readonly clip_sample_range: number | null;
  readonly sigmas: "timesteps" | "karras" | "exponential";
  readonly sigma_min: number | null;
  readonly sigma_max: number | null;
  readonly final_sigmas_type: "zero" | "sigma_min";
  readonly solver_order: 1 | 2 | 3;
  readonly solver_type: "midpoint" | "heun" | "bh1" | "bh2" | null;
  readonly lower_order_final: boolean;
  readonly euler_at_final: boolean;
  readonly lambda_min_clipped: number | null;
  readonly disable_corrector: readonly number[];
  readonly skip_prk_steps: boolean;
  readonly original_inference_steps: number;
  readonly timestep_scaling: number;
  readonly variance_type: "fixed_small" | "fixed_large";
  readonly eta: number;
}

const positive = number(Number.MIN_VALUE);

export const samplerSettings: Decoder<SamplerSettings> = struct<SamplerSettings>({
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

/** The settings of a sampler that states none, some of them replaced. */
export function settingsWith(changes: Partial<SamplerSettings> = {}): SamplerSettings {
  return { ...samplerSettings({}, "$"), ...changes };
}

/** A solved OLSS sampler: kept timesteps, the noise's weight in each step, and row k the k + 1 weights of the outputs so far. */
export interface OlssTable {
  readonly timesteps: readonly number[];
  readonly w: readonly number[];
  readonly v: readonly (readonly number[])[];
}

const olssTable: Decoder<OlssTable> = struct<OlssTable>({
  timesteps: required(listOf(integer())),
  w: required(listOf(number())),
  v: required(listOf(listOf(number()))),
});

/** The sampler of a task; without settings it has those of `settingsWith()`. */
export interface SamplerSpec {
  readonly kind: SamplerKind;
  readonly steps: number;
  readonly olss: OlssTable | null;
  readonly settings: SamplerSettings | undefined;
}

export const samplerSpec: Decoder<SamplerSpec> = struct<SamplerSpec>({
  kind: required(oneOf(...SAMPLER_KINDS)),
  steps: required(integer(1, MOST_STEPS)),
  olss: optional(nullable(olssTable), null),
  settings: maybe(samplerSettings),
});

/** How an adapter is meant to be run; what the caller of a picture says goes before it. */
export interface AdapterDefaults {
  readonly sampler: string | null;
  readonly guidance: number | null;
  readonly trigger_words: string | null;
}

export const adapterDefaults: Decoder<AdapterDefaults> = struct<AdapterDefaults>({
  sampler: optional(nullable(text), null),
  guidance: optional(nullable(number()), null),
  trigger_words: optional(nullable(text), null),
});
