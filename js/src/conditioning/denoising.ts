/** One planned run of the denoising loop: what the U-Net reads at every step, and where the loop begins; as its namesake in Python. */

import { InputError, mismatch, VerificationError } from "../core/errors.js";
import { type Beside, type LatentSpec, latentGrid, type TextSpec } from "../core/manifest.js";
import type { PictureSize } from "../core/picture_size.js";
import type { TaskSpec } from "../core/task.js";
import { concatenate, type Float, isFinite32, sameShape, type Tensor, zeros } from "../core/tensor.js";
import { shapeText } from "../core/text.js";
import type { Shape } from "../engine/engine.js";
import { Generator, type Seed } from "../noise/generator.js";
import { addNoise, type Network, type Start } from "../samplers/run.js";
import { type Condition, makeCondition, type Pictures } from "./condition.js";
import { guidedNetwork, isBatched, isGuided, type Side } from "./guidance.js";
import { checkSizes, type SizeConditions, sizeNumbers, withSizes } from "./size_conditions.js";

/** The graphs that a run is planned with, each with its adapter bound. */
export interface Encoders {
  readonly unetInputs: () => Promise<ReadonlyMap<string, Shape>>;
  readonly unet: (inputs: ReadonlyMap<string, Tensor>) => Promise<Float>;
  /** Prompts to their hidden states `(1, L, D)` each. */
  readonly texts: (prompts: readonly string[]) => Promise<readonly Float[]>;
  /** A picture `(1, 3, H, W)` in [-1, 1] to its model latent. */
  readonly picture: (image: Float) => Promise<Float>;
}

/** One picture that is asked for. */
export interface RunInputs {
  readonly task: string;
  readonly spec: TaskSpec;
  readonly pictures: Pictures;
  readonly prompt: string;
  readonly negativePrompt: string;
  readonly noise: Float;
  readonly size: PictureSize;
  /** What the model is told of the picture's size, if it is told any. */
  readonly sizes: SizeConditions;
  readonly latent: LatentSpec;
  readonly text: TextSpec;
  /** Timesteps of the model's noise schedule, which a guidance's interval is a part of. */
  readonly trainingSteps: number;
}

/** Everything about one picture that does not change from step to step. */
export interface DenoisingRun {
  readonly condition: Condition;
  readonly network: Network;
  readonly start: Start | undefined;
}

/** Read text and pictures, and build the network that a sampler runs. */
export async function planRun(encoders: Encoders, inputs: RunInputs): Promise<DenoisingRun> {
  const { spec, latent } = inputs;
  const condition = makeCondition(inputs.task, spec, inputs.pictures, inputs.size, latent.factor);
  const texts = await textsOf(encoders.texts, inputs);
  const unetInputs = await encoders.unetInputs();
  const names = besideOf(unetInputs, latent);
  const needsLatent = condition.image !== undefined && names.some((name) => name !== "mask");
  const encoded = needsLatent ? await encoders.picture(condition.image!) : undefined;
  const sides = sidesOf(names, latent, condition, encoded, texts, spec);
  const network = guidedNetwork(encoders.unet, isBatched(unetInputs), sides, spec, inputs.trainingSteps);
  return { condition, network, start: await startOf(inputs, condition, encoders.picture) };
}

/** Features of the prompt, in a guided run behind those of the negative one, `(1, rows, D)` each. */
async function textsOf(encode: Encoders["texts"], inputs: RunInputs): Promise<readonly Float[]> {
  const { text, sizes, size, prompt, negativePrompt } = inputs;
  checkSizes(text, sizes);
  const told = (features: Float, negative: boolean): Float => withSizes(text, features, sizeNumbers(sizes, size, negative));
  if (!isGuided(inputs.spec)) return [told((await encode([prompt]))[0]!, false)];
  if (text.zeros_for_empty === true && !negativePrompt) {
    const positive = (await encode([prompt]))[0]!;
    return [told(zeros(positive.shape), true), told(positive, false)];
  }
  const [positive, negative] = await encode([prompt, negativePrompt]);
  return [told(negative!, true), told(positive!, false)];
}

/** The generator of a run and its first noise `(1, c, h, w)`; `latents` takes the noise's place. */
export function drawNoise(
  seed: Seed,
  latents: Float | undefined,
  latent: LatentSpec,
  size: PictureSize,
  generator: Generator | undefined,
): { readonly rng: Generator; readonly noise: Float } {
  const shape = [1, latent.channels, ...latentGrid(latent, size)];
  const rng = generator ?? new Generator(seed);
  const noise = { data: Float32Array.from(rng.standardNormal(shape)), shape };
  if (latents === undefined) return { rng, noise };
  if (!sameShape(latents.shape, shape) || !isFinite32(latents.data)) {
    throw new InputError(mismatch("latents", `finite float32 ${shapeText(shape)}`, `shape ${shapeText(latents.shape)}`, "draw them anew"));
  }
  return { rng, noise: latents };
}

/** Names of the channels that follow the latent in the graph's `sample`. Raises a `VerificationError` for another number of channels. */
export function besideOf(inputs: ReadonlyMap<string, Shape>, latent: LatentSpec): readonly Beside[] {
  const shape = inputs.get("sample") ?? [];
  const candidates: readonly (readonly Beside[])[] = latent.beside === undefined ? [[], ["condition", "mask"]] : [latent.beside];
  const channels = (layout: readonly Beside[]): number =>
    layout.reduce((sum, part) => sum + (part === "mask" ? 1 : latent.channels), latent.channels);
  const layout = candidates.find((each) => shape.length === 4 && channels(each) === shape[1]);
  if (layout === undefined) {
    const expected = `sample with ${candidates.map(channels).join(" or ")} channels`;
    throw new VerificationError(mismatch("graph unet", expected, `shape ${shapeText(shape)}`, "build the bundle again"));
  }
  return layout;
}

/**
 * The sides of guidance: the prompt alone; or without it and with it, after them where a third one sees neither prompt nor picture.
 * Source: Ho and Salimans 2022; Brooks et al. 2023, Eq. 3.
 */
function sidesOf(
  names: readonly Beside[],
  latent: LatentSpec,
  condition: Condition,
  encoded: Float | undefined,
  texts: readonly Float[],
  spec: TaskSpec,
): readonly Side[] {
  const beside = besideLatent(names, latent, encoded, condition.mask);
  const sides = texts.map((text) => ({ beside, text }));
  if (spec.image_guidance === undefined || spec.image_guidance === 1) return sides;
  const without = besideLatent(names, latent, undefined, condition.mask);
  if (without === undefined) {
    const found = "none, but its tasks use one";
    throw new VerificationError(mismatch("graph unet", "a condition latent", found, "build the bundle again"));
  }
  return texts.length > 1 ? [{ beside: without, text: texts[0]! }, ...sides] : sides;
}

/** The channels beside the latent `(1, k, h, w)`; zeros for a condition latent that is not there. */
function besideLatent(names: readonly Beside[], latent: LatentSpec, encoded: Float | undefined, mask: Float): Float | undefined {
  if (!names.length) return undefined;
  const empty = zeros([1, latent.channels, ...mask.shape.slice(2)]);
  const parts = { mask, condition: encoded ?? empty, "raw-condition": encoded === undefined ? empty : raw(encoded, latent) };
  return concatenate(names.map((name) => parts[name]));
}

/** A model latent as the VAE gives it: `z / scale + shift`. */
function raw(encoded: Float, latent: LatentSpec): Float {
  const plane = encoded.data.length / latent.channels;
  const f = Math.fround;
  const data = encoded.data.map((value, i) => {
    const channel = Math.floor(i / plane);
    return f(f(value / f(latent.scale[channel]!)) + f(latent.shift[channel]!));
  });
  return { ...encoded, data };
}

/** Where the loop begins, and what holds it to the given picture; as diffusers, all of a mask's inside begins at noise. */
async function startOf(inputs: RunInputs, condition: Condition, encode: Encoders["picture"]): Promise<Start | undefined> {
  if (condition.picture === undefined) return undefined;
  const { spec, noise } = inputs;
  const x0 = await encode(condition.picture);
  const strength = spec.strength ?? 1;
  const fromNoise = spec.strength === undefined || (spec.mask === "input" && strength === 1);
  const plane = condition.mask.data.length;
  const keep: Start["keep"] = (x, abar) => {
    const given = addNoise(x0.data, noise.data, abar);
    return x.map((value, i) => {
      const inside = condition.mask.data[i % plane]!;
      return (1 - inside) * given[i]! + inside * value;
    });
  };
  return { x0: fromNoise ? undefined : x0, strength, keep: spec.blend === true ? keep : undefined };
}
