/**
 * `numpy.random.default_rng(seed)`: unit normal numbers, the same to the bit.
 *
 *     symbol   here      meaning
 *     x        `x`       half-width of a layer of the normal curve, `WIDTHS[layer]` for each of 2^52 steps
 *     k        `STEPS`   steps of a layer that lie wholly under the curve
 *     f        `HEIGHTS` the curve at each layer's edge
 *     r        `EDGE`    where the tail begins
 *
 * Source: Marsaglia and Tsang 2000, "The ziggurat method", with 256 layers, and the tail of Marsaglia 1964; numbers as NumPy's generator.
 */

import { mismatch, UsageError } from "../core/errors.js";
import { sizeOf } from "../core/numbers.js";
import { quoted } from "../core/text.js";
import { Pcg64, type Word64 } from "./pcg64.js";
import { HEIGHTS, STEPS, WIDTHS } from "./ziggurat_tables.js";

const EDGE = 3.654152885361009;
const EDGE_INVERSE = 0.2736612373297583;
const TWO_21 = 2 ** 21;
const TWO_23 = 2 ** 23;
const TWO_53 = 2 ** 53;

/** A whole number of any size; numbers beyond 2^53 have to be a `bigint`. */
export type Seed = number | bigint;

/** A stream of unit normal numbers. */
export class Generator {
  readonly #bits: Pcg64;
  readonly #word: Word64 = { high: 0, low: 0 };

  /** Raises a `UsageError` for a seed that is no whole number of 0 or more. */
  constructor(seed: Seed) {
    this.#bits = new Pcg64(checkedSeed(seed));
  }

  /** Unit normal numbers of a shape, float64. */
  standardNormal(shape: readonly number[]): Float64Array {
    const values = new Float64Array(sizeOf(shape));
    for (let i = 0; i < values.length; i++) values[i] = this.#normal();
    return values;
  }

  #normal(): number {
    const word = this.#word;
    for (;;) {
      this.#bits.next(word);
      // The lowest byte is the layer, the next bit the sign, the 52 above them the steps from the middle.
      const layer = word.low & 0xff;
      const steps = (word.high & 0x1fff_ffff) * TWO_23 + (word.low >>> 9);
      const x = (word.low & 0x100 ? -1 : 1) * steps * WIDTHS[layer]!;
      if (steps < STEPS[layer]!) return x;
      if (layer === 0) return this.#tail((word.low & 0x2_0000) !== 0);
      if ((HEIGHTS[layer - 1]! - HEIGHTS[layer]!) * this.#uniform() + HEIGHTS[layer]! < Math.exp(-0.5 * x * x)) return x;
    }
  }

  #tail(negative: boolean): number {
    for (;;) {
      const beyond = -EDGE_INVERSE * Math.log1p(-this.#uniform());
      const height = -Math.log1p(-this.#uniform());
      if (height + height > beyond * beyond) return negative ? -(EDGE + beyond) : EDGE + beyond;
    }
  }

  /** In [0, 1), of 53 bits. */
  #uniform(): number {
    this.#bits.next(this.#word);
    return (this.#word.high * TWO_21 + (this.#word.low >>> 11)) / TWO_53;
  }
}

/** A seed as the generator takes it. Raises a `UsageError` for what is none. */
export function checkedSeed(seed: Seed): bigint {
  if (typeof seed !== "bigint" && !Number.isSafeInteger(seed)) {
    throw new UsageError(mismatch("seed", "a whole number", quoted(seed), "give one, beyond 2^53 as a bigint"));
  }
  if (seed < 0) throw new UsageError(mismatch("seed", "0 or more", seed, "choose another"));
  return BigInt(seed);
}
