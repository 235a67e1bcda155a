/** Any input picture, and the picture of its own size that the graph reads; as `quad.runtime.conditioning.picture`. */

import { InputError, mismatch } from "../core/errors.js";
import { roundHalfEven } from "../core/numbers.js";
import type { PictureSize } from "../core/picture_size.js";
import { type FilterName, resizeBytes, resizePlane } from "./resample.js";

/** 8-bit pixels, rows from the top, 1, 3 or 4 channels a pixel: an `ImageData` is one. */
export interface Picture {
  readonly data: Uint8Array | Uint8ClampedArray;
  readonly width: number;
  readonly height: number;
}

/** A picture of three channels. */
export interface Rgb extends PictureSize {
  readonly data: Uint8Array;
}

/** A mask: 1 where something is inside. */
export interface Mask extends PictureSize {
  readonly data: Uint8Array;
}

const CLEAR_NOTE = "image: its transparent parts were laid on white";

/** The picture in three channels; transparent parts are laid on a grey, white by default, which a note says. */
export function toRgb(picture: Picture, where = "image", ground = 255): { readonly rgb: Rgb; readonly notes: readonly string[] } {
  const { width, height } = picture;
  const channels = channelsOf(picture, where);
  const data = new Uint8Array(width * height * 3);
  let isClear = false;
  for (let pixel = 0; pixel < width * height; pixel++) {
    const alpha = channels === 4 ? picture.data[4 * pixel + 3]! : 255;
    isClear ||= alpha < 255;
    for (let c = 0; c < 3; c++) {
      const level = picture.data[channels * pixel + (channels === 1 ? 0 : c)]!;
      data[3 * pixel + c] = alpha === 255 ? level : laidOn(level, alpha, ground);
    }
  }
  return { rgb: { data, width, height }, notes: isClear ? [CLEAR_NOTE] : [] };
}

/** A level over an opaque ground, in Pillow's fixed point. */
function laidOn(level: number, alpha: number, ground: number): number {
  if (alpha === 0) return ground;
  const share = Math.trunc((alpha * 255 * 255 * 128) / (255 * 255));
  const sum = level * share + ground * (255 * 128 - share) + (0x80 << 7);
  return (((sum >> 8) + sum) >> 8) >> 7;
}

function channelsOf(picture: Picture, where: string): number {
  const { data, width, height } = picture ?? {};
  const isBytes = data instanceof Uint8Array || data instanceof Uint8ClampedArray;
  const channels = isBytes ? data.length / (width * height) : 0;
  if (!isBytes || !(width >= 1 && height >= 1) || ![1, 3, 4].includes(channels)) {
    const found = isBytes ? `${data.length} bytes at ${width}x${height}` : "something else";
    throw new InputError(mismatch(where, "8-bit pixels of 1, 3 or 4 channels, as ImageData", found, "decode the picture first"));
  }
  return channels;
}

/** A part of a picture: left, top, right, bottom in pixels. */
type Part = readonly [number, number, number, number];

/** How a picture lies in the graph's: the part of it that is read, and where that lies; the rest repeats its edge. */
export class Fit {
  readonly source: Part;
  readonly target: Part;
  readonly width: number;
  readonly height: number;
  readonly size: PictureSize;

  constructor(source: Part, target: Part, whole: PictureSize, size: PictureSize) {
    this.source = source;
    this.target = target;
    this.width = whole.width;
    this.height = whole.height;
    this.size = size;
  }

  get isIdentity(): boolean {
    return this.size.width === this.width && this.size.height === this.height;
  }

  /** Whether all of the picture is read. */
  get isWhole(): boolean {
    const [left, top, right, bottom] = this.source;
    return left === 0 && top === 0 && right === this.width && bottom === this.height;
  }

  /** The picture at the graph's size. */
  forward(picture: Rgb): Rgb {
    const part = cropped(picture.data, picture.width, 3, this.source);
    const [width, height] = extent(this.target);
    const small = resizeBytes(part, extent(this.source), [width, height], 3, "lanczos");
    return { ...this.size, data: this.#padded(small, width, height, 3, true) };
  }

  /** A mask at the graph's size: a pixel is inside when any part of it is. */
  forwardMask(mask: Mask): Mask {
    const part = Float32Array.from(cropped(mask.data, mask.width, 1, this.source));
    const [width, height] = extent(this.target);
    const small = resizePlane(part, extent(this.source), [width, height], "box");
    return {
      ...this.size,
      data: this.#padded(
        Uint8Array.from(small, (share) => (share > 0 ? 1 : 0)),
        width,
        height,
        1,
        false,
      ),
    };
  }

  /** A plane of the graph's picture laid over the given one; zero where it does not reach. */
  back(plane: Float32Array): Float32Array {
    const [left, top] = this.source;
    const [width, height] = extent(this.source);
    const part = cropped(plane, this.size.width, 1, this.target);
    const large = resizePlane(part, extent(this.target), [width, height], "bicubic" satisfies FilterName);
    const over = new Float32Array(this.width * this.height);
    for (let y = 0; y < height; y++) over.set(large.subarray(y * width, (y + 1) * width), (top + y) * this.width + left);
    return over;
  }

  #padded(small: Uint8Array, width: number, height: number, channels: number, edge: boolean): Uint8Array {
    const [left, top] = this.target;
    const padded = new Uint8Array(this.size.width * this.size.height * channels);
    for (let y = 0; y < this.size.height; y++) {
      for (let x = 0; x < this.size.width; x++) {
        const [column, row] = [x - left, y - top];
        const isInside = column >= 0 && column < width && row >= 0 && row < height;
        if (!isInside && !edge) continue;
        const from = (Math.min(Math.max(row, 0), height - 1) * width + Math.min(Math.max(column, 0), width - 1)) * channels;
        padded.set(small.subarray(from, from + channels), (y * this.size.width + x) * channels);
      }
    }
    return padded;
  }
}

/** The whole picture, centred in the graph's. */
export function fitWhole(whole: PictureSize, size: PictureSize): Fit {
  const scale = Math.min(size.width / whole.width, size.height / whole.height);
  const [w, h] = [Math.max(1, roundHalfEven(whole.width * scale)), Math.max(1, roundHalfEven(whole.height * scale))];
  const [left, top] = [Math.floor((size.width - w) / 2), Math.floor((size.height - h) / 2)];
  return new Fit([0, 0, whole.width, whole.height], [left, top, left + w, top + h], whole, size);
}

/** The largest part around the picture's centre that has the shape of the graph's, filling that. */
export function fitCentre({ width, height }: PictureSize, size: PictureSize): Fit {
  const w = Math.min(width, Math.max(1, roundHalfEven((height * size.width) / size.height)));
  const h = Math.min(height, Math.max(1, roundHalfEven((width * size.height) / size.width)));
  const [left, top] = [Math.floor((width - w) / 2), Math.floor((height - h) / 2)];
  return new Fit([left, top, left + w, top + h], [0, 0, size.width, size.height], { width, height }, size);
}

function extent([left, top, right, bottom]: Part): readonly [number, number] {
  return [right - left, bottom - top];
}

function cropped<D extends Uint8Array | Float32Array>(data: D, stride: number, channels: number, part: Part): D {
  const [left, top] = part;
  const [width, height] = extent(part);
  const cut = data.slice(0, width * height * channels) as D;
  for (let y = 0; y < height; y++) {
    const from = ((top + y) * stride + left) * channels;
    cut.set(data.subarray(from, from + width * channels), y * width * channels);
  }
  return cut;
}
