/** From what the user gives to what the graph reads beside the noise; as `quad.runtime.conditioning.condition`. */

import { mismatch, UsageError } from "../core/errors.js";
import { type PictureSize, sizeText } from "../core/picture_size.js";
import { readsPicture, type TaskSpec } from "../core/task.js";
import { type Float, zeros } from "../core/tensor.js";
import { feather, growSteps, poolMask, readMask, sampleMask } from "./mask.js";
import { type Fit, fitCentre, fitWhole, type Mask, type Picture, type Rgb, toRgb } from "./picture.js";

const HOLE = 127;
export const DEFAULT_GROW_PX = 2;

/** The pictures that the user gave beside the prompt; `maskGrowPx` counts pixels of the graph's picture. */
export interface Pictures {
  readonly image: Picture | undefined;
  readonly mask: Picture | undefined;
  readonly maskGrowPx: number;
}

/** The original picture, and the weight of the new one at each of its pixels. */
export interface PasteBack {
  readonly original: Rgb;
  readonly weight: Float32Array;
  readonly fit: Fit;
}

/** The condition channels of one call. */
export interface Condition {
  /** `(1, 3, H, W)` in [-1, 1] for the VAE encoder; absent: a zero latent. */
  readonly image: Float | undefined;
  /** `(1, 1, h, w)` at latent resolution, 1 where the picture is made anew. */
  readonly mask: Float;
  /** Where only the mask's inside is to change in the result. */
  readonly paste: PasteBack | undefined;
  readonly notes: readonly string[];
  /** The given picture itself, as `image`, where the loop begins at it or is held to it. */
  readonly picture: Float | undefined;
}

/** The condition of a task. Raises a `UsageError` where a picture or a mask is missing, an `InputError` where one is none. */
export function makeCondition(task: string, spec: TaskSpec, pictures: Pictures, size: PictureSize, factor: number): Condition {
  const notes = ignored(task, spec, pictures);
  const flat = flatMask(spec, [1, 1, Math.floor(size.height / factor), Math.floor(size.width / factor)]);
  if (!readsPicture(spec)) {
    const image = spec.condition === "cut-image" ? zeros([1, 3, size.height, size.width]) : undefined;
    return { image, mask: flat, paste: undefined, notes, picture: undefined };
  }
  if (pictures.image === undefined) throw new UsageError(mismatch(`task ${task}`, "a picture", "none", "give one: image="));
  const { rgb, notes: clear } = toRgb(pictures.image);
  notes.push(...clear);
  if (spec.mask === "input") return masked(task, spec, pictures, rgb, notes, size, factor);
  const fit = fitCentre(rgb, size);
  if (!fit.isIdentity) {
    const part = fit.isWhole ? "" : size.width === size.height ? "its centre square, " : "its centre, ";
    notes.push(`image: ${part}resized from ${fit.width}x${fit.height} to ${sizeText(size)}`);
  }
  const fitted = toModel(fit.forward(rgb));
  const everywhere = { ...size, data: new Uint8Array(size.width * size.height).fill(1) };
  const image = conditionImage(spec, fitted, everywhere);
  return { image, mask: flat, paste: undefined, notes, picture: needsPicture(spec) ? fitted : undefined };
}

/** Work on the whole picture, padded to the graph's size, so that the result can be pasted back. */
function masked(
  task: string,
  spec: TaskSpec,
  pictures: Pictures,
  rgb: Rgb,
  notes: readonly string[],
  size: PictureSize,
  factor: number,
): Condition {
  if (pictures.mask === undefined) {
    throw new UsageError(mismatch(`task ${task}`, "a mask of what to remove", "none", "give one: mask_image="));
  }
  const { mask, notes: maskNotes } = readMask(pictures.mask, rgb);
  const fit = fitWhole(rgb, size);
  const fitNotes = fit.isIdentity ? [] : [`image: worked on at ${sizeText(size)}, pasted back into ${rgb.width}x${rgb.height}`];
  const steps = growSteps(fit.forwardMask(mask), pictures.maskGrowPx);
  const largest = steps.at(-1)!;
  const fitted = toModel(fit.forward(rgb));
  // At the picture's own resolution the user's mask is wholly replaced, whatever resizing made of its edge.
  const weight = fit.back(feather(steps)).map((value, i) => (mask.data[i] ? 1 : Math.min(Math.max(value, 0), 1)));
  return {
    image: conditionImage(spec, fitted, largest),
    mask: spec.condition === "masked-image" ? poolMask(largest, factor) : sampleMask(largest, factor),
    paste: { original: rgb, weight, fit },
    notes: [...notes, ...maskNotes, ...fitNotes],
    picture: needsPicture(spec) ? fitted : undefined,
  };
}

/** The part of the picture `(1, 3, H, W)` that the graph sees beside the latent. */
function conditionImage(spec: TaskSpec, fitted: Float, mask: Mask): Float | undefined {
  if (spec.condition === "none") return undefined;
  if (spec.condition === "image") return fitted;
  const hole = spec.condition === "masked-image" ? level(HOLE) : 0;
  const plane = mask.data.length;
  return { ...fitted, data: fitted.data.map((value, i) => (mask.data[i % plane] ? hole : value)) };
}

function needsPicture(spec: TaskSpec): boolean {
  return spec.strength !== undefined || spec.blend === true;
}

function flatMask(spec: TaskSpec, shape: readonly number[]): Float {
  const mask = zeros(shape);
  if (spec.mask !== "zeros") mask.data.fill(1);
  return mask;
}

function ignored(task: string, spec: TaskSpec, pictures: Pictures): string[] {
  const notes: string[] = [];
  if (!readsPicture(spec) && pictures.image !== undefined) {
    notes.push(`image: task ${task} reads no picture, it was not used; name a task that reads one`);
  }
  if (spec.mask !== "input" && pictures.mask !== undefined) {
    notes.push(`mask: task ${task} reads no mask, it was not used; name a task that reads one`);
  }
  return notes;
}

/** 8-bit pixels to `(1, 3, H, W)` in [-1, 1]. */
function toModel({ data, width, height }: Rgb): Float {
  const plane = width * height;
  const model = zeros([1, 3, height, width]);
  for (let pixel = 0; pixel < plane; pixel++) {
    for (let c = 0; c < 3; c++) model.data[c * plane + pixel] = level(data[3 * pixel + c]!);
  }
  return model;
}

function level(byte: number): number {
  return Math.fround(Math.fround(byte / 127.5) - 1);
}
