/** Means over blocks of an answer, and how far they are from a vector's; as docs/formats.md says. */

import type { Float } from "../core/tensor.js";

/** Means of `(1, C, h, w)` over `grid` by `grid` blocks, fewer where it has fewer numbers; axes are split as `numpy.array_split` does. */
export function blockMeans({ data, shape }: Float, grid: number): readonly number[] {
  const [, channels, height, width] = shape as readonly [number, number, number, number];
  const rows = splits(height, grid);
  const columns = splits(width, grid);
  return Array.from({ length: channels }, (_, c) =>
    rows.flatMap(([top, bottom]) =>
      columns.map(([left, right]) => {
        let sum = 0;
        for (let y = top; y < bottom; y++) for (let x = left; x < right; x++) sum += data[(c * height + y) * width + x]!;
        return sum / ((bottom - top) * (right - left));
      }),
    ),
  ).flat();
}

/** Largest difference of one value over the RMS of all; infinite where there is another number of them, or NaN among them. */
export function distance(expected: readonly number[], found: readonly number[]): number {
  if (expected.length !== found.length || !found.every(Number.isFinite)) return Infinity;
  const rms = Math.sqrt(expected.reduce((sum, value) => sum + value * value, 0) / expected.length);
  const largest = expected.reduce((most, value, index) => Math.max(most, Math.abs(value - found[index]!)), 0);
  return largest / Math.max(rms, 1e-12);
}

/** Begin and end of each part of an axis: the first ones are one longer where it does not divide. */
function splits(size: number, grid: number): readonly (readonly [number, number])[] {
  const count = Math.min(grid, size);
  const [base, longer] = [Math.floor(size / count), size % count];
  return Array.from({ length: count }, (_, index) => {
    const start = index * base + Math.min(index, longer);
    return [start, start + base + (index < longer ? 1 : 0)] as const;
  });
}
