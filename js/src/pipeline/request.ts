/** A request for a picture, the tasks it may name, and what a pipeline makes of it; as `quad.runtime.request`. */

import { adapterWeights, type Weight } from "../adapters/block_weights.js";
import { type IntervalInput, parseInterval } from "../conditioning/guidance.js";
import type { Picture } from "../conditioning/picture.js";
import { type PromptSyntax, SYNTAXES } from "../conditioning/prompt_syntax.js";
import type { SizeConditions } from "../conditioning/size_conditions.js";
import { mismatch, UsageError } from "../core/errors.js";
import { type PictureSize, sizeText } from "../core/picture_size.js";
import type { SamplerSpec } from "../core/sampling.js";
import { type NoiseSchedule, readsPicture, type TaskSpec } from "../core/task.js";
import type { Float } from "../core/tensor.js";
import { quoted } from "../core/text.js";
import type { Generator, Seed } from "../noise/generator.js";
import { samplerText } from "../samplers/names.js";
import { checkedGuidance, jointDefaults, type Presets, reachableStrength, triggerNotes, withDefaults } from "./adapter_defaults.js";

export const TEXT_TO_IMAGE = "text-to-image";
/** For numbers of steps that no OLSS table was solved for. */
const OLSS_STAND_IN = "dpmsolver++";
const HALF_CHARACTER = /\p{Cs}/u;

/** One picture, by the names of Python's `QuadPipeline.__call__`. */
export interface Request {
  readonly prompt: string;
  readonly negative_prompt: string;
  readonly task: string | undefined;
  /** Adapter name -> weight; empty for the base, undefined for the task's own. */
  readonly adapters: ReadonlyMap<string, Weight> | undefined;
  readonly image: Picture | undefined;
  readonly mask_image: Picture | undefined;
  readonly mask_grow: number;
  readonly num_inference_steps: number | undefined;
  readonly sampler: string | undefined;
  readonly guidance_scale: number | undefined;
  readonly image_guidance_scale: number | undefined;
  readonly guidance_interval: IntervalInput | undefined;
  readonly tiny_decoder: boolean;
  readonly strength: number | undefined;
  readonly seed: Seed;
  readonly generator: Generator | undefined;
  readonly latents: Float | undefined;
  readonly width: number | undefined;
  readonly height: number | undefined;
  readonly sizes: SizeConditions;
  readonly prompt_syntax: PromptSyntax;
}

/** A request as a pipeline understands it. */
export interface Resolved {
  readonly task: string;
  /** Of the task, with what the request overrides. */
  readonly spec: TaskSpec;
  readonly weights: ReadonlyMap<string, Weight>;
  readonly notes: readonly string[];
  readonly size: PictureSize;
}

/** What a bundle offers to a request. */
export interface Offer {
  readonly tasks: ReadonlyMap<string, TaskSpec>;
  readonly schedule: NoiseSchedule;
  readonly presets: Presets;
  readonly sizes: readonly [PictureSize, ...PictureSize[]];
  readonly tinyDecoder: boolean;
}

/** Task and adapters that a request means. Raises a `UsageError` for an unknown task or sampler, or a number out of its range. */
export function resolve(request: Request, offer: Offer): Resolved {
  for (const name of ["prompt", "negative_prompt"] as const) {
    if (typeof request[name] !== "string") throw new UsageError(mismatch(name, "one string", typeof request[name], "call once per prompt"));
    if (HALF_CHARACTER.test(request[name])) throw new UsageError(mismatch(name, "text in UTF-8", quoted(request[name]), "write it again"));
  }
  if (!SYNTAXES.includes(request.prompt_syntax)) {
    const expected = `one of ${SYNTAXES.join(", ")}`;
    throw new UsageError(mismatch("prompt_syntax", expected, quoted(request.prompt_syntax), "choose one of these"));
  }
  if (request.tiny_decoder && !offer.tinyDecoder) {
    const way = "build with --tiny-decoder, or leave it out";
    throw new UsageError(mismatch("tiny_decoder", "a bundle of quad build --tiny-decoder", "one without", way));
  }
  wholeNumber("mask_grow", request.mask_grow);
  const task = chooseTask(request.task, [...(request.adapters?.keys() ?? [])], offer.tasks);
  const own = offer.tasks.get(task)!;
  const notes: string[] = [];
  const weights = request.adapters ?? adapterWeights(own.adapter === null ? [] : [own.adapter]);
  if (request.adapters !== undefined && own.adapter !== null && !weights.has(own.adapter)) {
    notes.push(`adapters: task ${task} is meant for ${quoted(own.adapter)}, which is not active`);
  }
  if (request.sampler !== undefined && typeof request.sampler !== "string") {
    throw new UsageError(mismatch("sampler", "KIND or KIND:STEPS", quoted(request.sampler), 'write "euler:20"'));
  }
  const caller = { sampler: request.sampler ?? null, guidance: request.guidance_scale ?? null };
  const joint = jointDefaults(weights, offer.presets, caller);
  const sampled = withDefaults(own, joint.wishes, offer.presets.samplers);
  const spec = withOverrides(task, sampled, request, offer.schedule);
  if (spec.sampler.kind !== sampled.sampler.kind) {
    notes.push(`sampler olss has a table for ${sampled.sampler.steps} steps alone: ${samplerText(spec.sampler)} took its place`);
  }
  notes.push(...joint.notes, ...triggerNotes(weights, offer.presets, request.prompt));
  return { task, spec, weights, notes, size: chooseSize(offer.sizes, request.width, request.height) };
}

/** The task of a call: the one of that name, else that of the active adapter, else text-to-image. */
function chooseTask(name: string | undefined, active: readonly string[], tasks: ReadonlyMap<string, TaskSpec>): string {
  const own = active.flatMap((adapter) => [...tasks].filter(([, spec]) => spec.adapter === adapter).map(([task]) => task));
  const chosen = name ?? own[0] ?? TEXT_TO_IMAGE;
  if (tasks.has(chosen)) return chosen;
  throw new UsageError(mismatch("task", `one of ${[...tasks.keys()].sort().join(", ")}`, quoted(chosen), "choose one of these"));
}

/** The first of these sizes that has the width and height asked for. */
function chooseSize(sizes: Offer["sizes"], width: number | undefined, height: number | undefined): PictureSize {
  if (width !== undefined) wholeNumber("width", width);
  if (height !== undefined) wholeNumber("height", height);
  const fits = (size: PictureSize): boolean => (width ?? size.width) === size.width && (height ?? size.height) === size.height;
  const chosen = sizes.find(fits);
  if (chosen !== undefined) return chosen;
  const asked = sizeText({ width: width ?? sizes[0].width, height: height ?? sizes[0].height });
  const expected = `one of the bundle's sizes, ${sizes.map(sizeText).join(", ")}`;
  const hint = "choose one, or build for another: quad build --size, multiples of 64";
  throw new UsageError(mismatch("width, height", expected, asked, hint));
}

/** The task's sampler with another number of steps; an OLSS table is solved for its own, so that `OLSS_STAND_IN` takes its place. */
function withSteps(sampler: SamplerSpec, steps: number | undefined, schedule: NoiseSchedule): SamplerSpec {
  if (steps === undefined || wholeNumber("num_inference_steps", steps) === sampler.steps) return sampler;
  if (steps < 1 || steps > schedule.steps) {
    throw new UsageError(mismatch("num_inference_steps", `1 to ${schedule.steps}`, steps, "choose one in that range"));
  }
  return sampler.kind === "olss" ? { ...sampler, kind: OLSS_STAND_IN, steps, olss: null } : { ...sampler, steps };
}

/** The task as one request runs it. */
function withOverrides(task: string, spec: TaskSpec, request: Request, schedule: NoiseSchedule): TaskSpec {
  let changed: TaskSpec = { ...spec, sampler: withSteps(spec.sampler, request.num_inference_steps, schedule) };
  const { strength, guidance_scale: guidance, image_guidance_scale: pictureGuidance } = request;
  if (strength !== undefined) {
    if (!readsPicture(spec)) {
      const expected = `a task that begins at a picture, which ${task} does not`;
      throw new UsageError(mismatch("strength", expected, quoted(strength), "name one, or leave it out"));
    }
    if (!(strength > 0 && strength <= 1)) {
      throw new UsageError(mismatch("strength", "more than 0, at most 1", quoted(strength), "choose one in that range"));
    }
    changed = { ...changed, strength };
  }
  if (guidance !== undefined) changed = { ...changed, guidance: checkedGuidance("guidance_scale", guidance) };
  if (pictureGuidance !== undefined) {
    if (spec.image_guidance === undefined) {
      const found = `${task}, which has none`;
      throw new UsageError(mismatch("image_guidance_scale", "a task with picture guidance", found, "leave it out"));
    }
    changed = { ...changed, image_guidance: checkedGuidance("image_guidance_scale", pictureGuidance) };
  }
  if (request.guidance_interval !== undefined) changed = { ...changed, guidance_interval: parseInterval(request.guidance_interval) };
  return strength === undefined ? reachableStrength(changed) : changed;
}

/** Raises a `UsageError` for what is no whole number. */
export function wholeNumber(name: string, value: number): number {
  if (!Number.isSafeInteger(value)) throw new UsageError(mismatch(name, "a whole number", quoted(value), "give one"));
  return value;
}
