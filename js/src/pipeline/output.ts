/** The decoder's output as a picture; as `to_picture` of `quad.runtime.stages`. */

import type { PasteBack } from "../conditioning/condition.js";
import type { Rgb } from "../conditioning/picture.js";
import { roundHalfEven } from "../core/numbers.js";
import { type Float, zeros } from "../core/tensor.js";

/** 8-bit RGBA pixels, as `new ImageData(data, width, height)` takes them. */
export interface RgbaPicture {
  readonly data: Uint8ClampedArray<ArrayBuffer>;
  readonly width: number;
  readonly height: number;
}

/** The decoder's output `(1, 3, H, W)`, clamped, as a picture; laid into the original where `paste` says so. */
export function toPicture(image: Float, paste: PasteBack | undefined): Rgb {
  const [height, width] = [image.shape[2]!, image.shape[3]!];
  const plane = width * height;
  const levels = image.data.map((value) => Math.min(Math.max(Math.fround(Math.fround(value + 1) * 127.5), 0), 255));
  if (paste === undefined) {
    const data = Uint8Array.from({ length: 3 * plane }, (_, i) => roundHalfEven(levels[(i % 3) * plane + Math.floor(i / 3)]!));
    return { data, width, height };
  }
  const { original, weight, fit } = paste;
  const data = new Uint8Array(original.data.length);
  for (let c = 0; c < 3; c++) {
    const made = fit.back(levels.subarray(c * plane, (c + 1) * plane));
    for (const [pixel, share] of weight.entries()) {
      const f = Math.fround;
      const level = Math.min(Math.max(made[pixel]!, 0), 255);
      data[3 * pixel + c] = roundHalfEven(f(f(share * level) + f(f(1 - share) * original.data[3 * pixel + c]!)));
    }
  }
  return { data, width: original.width, height: original.height };
}

/** The decoder's output as floats `(1, H, W, 3)` in [0, 1]. */
export function toFloats(image: Float): Float {
  const [height, width] = [image.shape[2]!, image.shape[3]!];
  const plane = width * height;
  const floats = zeros([1, height, width, 3]);
  for (let i = 0; i < floats.data.length; i++) {
    const value = Math.fround(image.data[(i % 3) * plane + Math.floor(i / 3)]! / 2);
    floats.data[i] = Math.min(Math.max(Math.fround(value + 0.5), 0), 1);
  }
  return floats;
}

/** A picture's levels as floats `(1, H, W, 3)` in [0, 1]. */
export function asFloats({ data, width, height }: Rgb): Float {
  return { data: Float32Array.from(data, (level) => level / 255), shape: [1, height, width, 3] };
}

/** A picture with an opaque alpha channel. */
export function rgba({ data, width, height }: Rgb): RgbaPicture {
  const pixels = new Uint8ClampedArray(4 * width * height).fill(255);
  for (let pixel = 0; pixel < width * height; pixel++) pixels.set(data.subarray(3 * pixel, 3 * pixel + 3), 4 * pixel);
  return { data: pixels, width, height };
}
