/**
 * PCG64, NumPy's default bit generator: a linear congruential generator of 128 bits, its output folded to 64 (XSL-RR).
 *
 * Source: O'Neill 2014, "PCG: A family of simple fast space-efficient statistically good algorithms", 6.3. The 128 bits are four words of 32,
 * least first, since products of two words are exact in halves.
 */

import { seedWords } from "./seed_sequence.js";

const MULTIPLIER = words(0x2360ed051fc65da44385df649fccf645n);
const MASK = (1n << 128n) - 1n;

/** The two halves of a 64-bit word. */
export interface Word64 {
  high: number;
  low: number;
}

/** One stream of 64-bit words. */
export class Pcg64 {
  readonly #state: Uint32Array;
  readonly #increment: Uint32Array;
  readonly #product = new Uint32Array(4);

  constructor(seed: bigint) {
    const [stateHigh, stateLow, streamHigh, streamLow] = seedWords(seed, 4) as [bigint, bigint, bigint, bigint];
    const increment = ((((streamHigh << 64n) | streamLow) << 1n) | 1n) & MASK;
    this.#increment = words(increment);
    this.#state = words((increment + ((stateHigh << 64n) | stateLow)) & MASK);
    this.#step();
  }

  /** Write the next word into `word`. */
  next(word: Word64): void {
    this.#step();
    const state = this.#state;
    const turn = state[3]! >>> 26;
    const high = (state[3]! ^ state[1]!) >>> 0;
    const low = (state[2]! ^ state[0]!) >>> 0;
    // Rotated right by `turn` bits, of which the first is whether the halves change places.
    const [a, b] = turn & 32 ? [low, high] : [high, low];
    const bits = turn & 31;
    word.high = bits ? ((a >>> bits) | (b << (32 - bits))) >>> 0 : a;
    word.low = bits ? ((b >>> bits) | (a << (32 - bits))) >>> 0 : b;
  }

  /** state = state * multiplier + increment, modulo 2^128. */
  #step(): void {
    const product = this.#product;
    const state = this.#state;
    product.set(this.#increment);
    for (let i = 0; i < 4; i++) {
      let carry = 0;
      for (let j = 0; i + j < 4; j++) {
        const a = state[i]!;
        const b = MULTIPLIER[j]!;
        // a * b + product + carry, below 2^64: in two exact parts of 48 bits and more.
        const low = a * (b & 0xffff) + product[i + j]! + carry;
        const high = a * (b >>> 16) + Math.floor(low / 0x10000);
        product[i + j] = ((high & 0xffff) << 16) | (low & 0xffff);
        carry = Math.floor(high / 0x10000);
      }
    }
    state.set(product);
  }
}

function words(value: bigint): Uint32Array {
  return Uint32Array.from({ length: 4 }, (_, i) => Number((value >> BigInt(32 * i)) & 0xffffffffn));
}
