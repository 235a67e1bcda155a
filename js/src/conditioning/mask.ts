/** The user's mask: read, fitted, grown, and feathered for pasting back; as `quad.runtime.conditioning.mask`. */

import { InputError, mismatch, UsageError } from "../core/errors.js";
import type { PictureSize } from "../core/picture_size.js";
import { type Float, zeros } from "../core/tensor.js";
import { shown } from "../core/text.js";
import { type Mask, type Picture, toRgb } from "./picture.js";
import { resizeBytes } from "./resample.js";

const INSIDE = 128;
const OUTSIDE = 0;
const MAX_GROW_PX = 256;

/** The mask at the picture's size: inside where it is at least half white. Raises an `InputError` where nothing of it is white. */
export function readMask(source: Picture, { width, height }: PictureSize): { readonly mask: Mask; readonly notes: readonly string[] } {
  const { rgb } = toRgb(source, "mask", OUTSIDE); // where nothing was painted, nothing is meant
  let inside = Uint8Array.from({ length: rgb.width * rgb.height }, (_, i) =>
    Math.max(rgb.data[3 * i]!, rgb.data[3 * i + 1]!, rgb.data[3 * i + 2]!) >= INSIDE ? 1 : 0,
  );
  const notes: string[] = [];
  if (rgb.width !== width || rgb.height !== height) {
    notes.push(`mask: resized from ${rgb.width}x${rgb.height} to the picture's ${width}x${height}`);
    const white = inside.map((value) => value * 255);
    const plane = resizeBytes(white, [rgb.width, rgb.height], [width, height], 1, "box");
    const half = plane.map((value) => (value >= INSIDE ? 1 : 0));
    // A thin mask may fall below half a pixel: what was marked must not vanish.
    inside = new Uint8Array(half.includes(1) ? half : plane.map((value) => (value > 0 ? 1 : 0)));
  }
  if (!inside.includes(1)) {
    throw new InputError(mismatch("mask", "white where something is to be removed", "an empty mask", "paint over the object"));
  }
  return { mask: { data: inside, width, height }, notes };
}

/** The mask, and the mask grown by 1, 2, ... pixels to every side. Raises a `UsageError` where their number is negative or absurd. */
export function growSteps(mask: Mask, growPx: number): readonly Mask[] {
  if (!(Number.isInteger(growPx) && growPx >= 0 && growPx <= MAX_GROW_PX)) {
    throw new UsageError(mismatch("mask_grow", `0 to ${MAX_GROW_PX} pixels`, shown(growPx), "choose one in that range"));
  }
  const steps = [mask];
  for (let i = 0; i < growPx; i++) steps.push(grown(steps.at(-1)!));
  return steps;
}

/** Weight of the new picture: 1 in the user's mask, falling to 0 where the grown mask ends. */
export function feather(steps: readonly Mask[]): Float32Array {
  const inner = steps.length > 1 ? steps.slice(0, -1) : steps;
  return Float32Array.from(steps[0]!.data, (_, i) => inner.reduce((sum, mask) => sum + mask.data[i]!, 0) / inner.length);
}

/** The mask max-pooled to latent resolution, `(1, 1, h, w)`. */
export function poolMask(mask: Mask, factor: number): Float {
  const pooled = zeros([1, 1, Math.floor(mask.height / factor), Math.floor(mask.width / factor)]);
  const columns = pooled.shape[3]!;
  for (const [i, value] of mask.data.entries()) {
    if (value) pooled.data[Math.floor(Math.floor(i / mask.width) / factor) * columns + Math.floor((i % mask.width) / factor)] = 1;
  }
  return pooled;
}

/** The mask at latent resolution, every `factor`-th pixel, `(1, 1, h, w)`. */
export function sampleMask(mask: Mask, factor: number): Float {
  const sampled = zeros([1, 1, Math.ceil(mask.height / factor), Math.ceil(mask.width / factor)]);
  const columns = sampled.shape[3]!;
  return {
    ...sampled,
    data: sampled.data.map((_, i) => mask.data[Math.floor(i / columns) * factor * mask.width + (i % columns) * factor]!),
  };
}

function grown({ data, width, height }: Mask): Mask {
  const larger = new Uint8Array(data.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!data[y * width + x]) continue;
      for (let row = Math.max(0, y - 1); row <= Math.min(height - 1, y + 1); row++) {
        for (let column = Math.max(0, x - 1); column <= Math.min(width - 1, x + 1); column++) larger[row * width + column] = 1;
      }
    }
  }
  return { data: larger, width, height };
}
