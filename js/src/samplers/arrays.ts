/** Float64 arrays of one size, added up. */

export type Array64 = Float64Array;

/** The sum of arrays, each times its number, from left to right. */
export function combine(...terms: readonly (readonly [number, Array64])[]): Array64 {
  const [first, ...others] = terms;
  const sum = first![1].map((value) => first![0] * value);
  for (const [factor, values] of others) for (let i = 0; i < sum.length; i++) sum[i]! += factor * values[i]!;
  return sum;
}

/** `(a - b) / divisor`. */
export function quotient(a: Array64, b: Array64, divisor: number): Array64 {
  return a.map((value, i) => (value - b[i]!) / divisor);
}
