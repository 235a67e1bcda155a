/**
 * Pictures and planes at another size, with Pillow's filters and Pillow's arithmetic: 8-bit pictures in fixed point, planes in float32, rows
 * first and columns then.
 *
 * Source: the manual of Pillow, "Filters" (Lanczos with 3 lobes, Keys' cubic with a = -0.5, box); numbers as Pillow's resize.
 */

interface Filter {
  readonly support: number;
  readonly at: (x: number) => number;
}

const BOX: Filter = { support: 0.5, at: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) };
const BILINEAR: Filter = { support: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) };
const BICUBIC: Filter = { support: 2, at: (x) => cubic(Math.abs(x)) };
const LANCZOS: Filter = { support: 3, at: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) };
export const FILTERS = { box: BOX, bilinear: BILINEAR, bicubic: BICUBIC, lanczos: LANCZOS } as const;
export type FilterName = keyof typeof FILTERS;

const FRACTION_BITS = 22;

/** Where a pixel's neighbours begin, and what each counts. */
interface Taps {
  readonly begin: number;
  readonly weights: Float64Array;
}

/** An 8-bit picture of any number of channels, channels last. */
export function resizeBytes(
  source: Uint8Array,
  [width, height]: readonly [number, number],
  [toWidth, toHeight]: readonly [number, number],
  channels: number,
  filter: FilterName,
): Uint8Array {
  let pixels = source;
  if (toWidth !== width) pixels = bytesAcross(pixels, height, width * channels, channels, tapsOf(width, toWidth, filter), false);
  if (toHeight !== height) pixels = bytesAcross(pixels, height, toWidth * channels, channels, tapsOf(height, toHeight, filter), true);
  return pixels;
}

/** A plane of floats. */
export function resizePlane(
  source: Float32Array,
  [width, height]: readonly [number, number],
  [toWidth, toHeight]: readonly [number, number],
  filter: FilterName,
): Float32Array {
  let plane = source;
  if (toWidth !== width) {
    const taps = tapsOf(width, toWidth, filter);
    const across = new Float32Array(toWidth * height);
    for (let y = 0; y < height; y++) {
      for (const [x, { begin, weights }] of taps.entries()) {
        let sum = 0;
        for (let i = 0; i < weights.length; i++) sum += plane[y * width + begin + i]! * weights[i]!;
        across[y * toWidth + x] = sum;
      }
    }
    plane = across;
  }
  if (toHeight === height) return plane;
  const down = new Float32Array(toWidth * toHeight);
  for (const [y, { begin, weights }] of tapsOf(height, toHeight, filter).entries()) {
    for (let x = 0; x < toWidth; x++) {
      let sum = 0;
      for (let i = 0; i < weights.length; i++) sum += plane[(begin + i) * toWidth + x]! * weights[i]!;
      down[y * toWidth + x] = sum;
    }
  }
  return down;
}

/** One pass over an 8-bit picture, along its rows or, `down`, its columns; `stride` is the bytes of a row. */
function bytesAcross(source: Uint8Array, rows: number, stride: number, channels: number, taps: readonly Taps[], down: boolean): Uint8Array {
  const fixed = taps.map(({ weights }) => Int32Array.from(weights, fixedPoint));
  const half = 1 << (FRACTION_BITS - 1);
  if (down) {
    const result = new Uint8Array(taps.length * stride);
    for (const [y, { begin }] of taps.entries()) {
      const weights = fixed[y]!;
      for (let x = 0; x < stride; x++) {
        let sum = half;
        for (let i = 0; i < weights.length; i++) sum += source[(begin + i) * stride + x]! * weights[i]!;
        result[y * stride + x] = clipped(sum);
      }
    }
    return result;
  }
  const to = taps.length * channels;
  const result = new Uint8Array(rows * to);
  for (let y = 0; y < rows; y++) {
    for (const [x, { begin }] of taps.entries()) {
      const weights = fixed[x]!;
      for (let c = 0; c < channels; c++) {
        let sum = half;
        for (let i = 0; i < weights.length; i++) sum += source[y * stride + (begin + i) * channels + c]! * weights[i]!;
        result[y * to + x * channels + c] = clipped(sum);
      }
    }
  }
  return result;
}

function tapsOf(from: number, to: number, name: FilterName): readonly Taps[] {
  const filter = FILTERS[name];
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  const support = filter.support * stretch;
  return Array.from({ length: to }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const begin = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(from, Math.trunc(centre + support + 0.5));
    const weights = Float64Array.from({ length: end - begin }, (_, i) => filter.at((i + begin - centre + 0.5) * (1 / stretch)));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return { begin, weights: total === 0 ? weights : weights.map((weight) => weight / total) };
  });
}

function fixedPoint(weight: number): number {
  return Math.trunc(weight * 2 ** FRACTION_BITS + (weight < 0 ? -0.5 : 0.5));
}

function clipped(sum: number): number {
  return Math.min(Math.max(sum >> FRACTION_BITS, 0), 255);
}

function cubic(x: number): number {
  const a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

function sinc(x: number): number {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}
