/**
 * NumPy's `SeedSequence`: any whole number of 0 or more, mixed into as many words as a generator wants.
 *
 * Source: O'Neill 2015, "Developing a seed_seq alternative"; numbers as `numpy.random.SeedSequence` with a pool of four words.
 */

const POOL_SIZE = 4;
const INIT_A = 0x43b0d7e5;
const MULT_A = 0x931e8875;
const INIT_B = 0x8b51f9dd;
const MULT_B = 0x58f38ded;
const MIX_MULT_L = 0xca01f9dd;
const MIX_MULT_R = 0x4973f715;
const XSHIFT = 16;

/** The first 64-bit words that a seed becomes. */
export function seedWords(seed: bigint, count: number): bigint[] {
  const pool = mixedPool(words32(seed));
  let hash = INIT_B;
  const state: number[] = [];
  for (let i = 0; i < 2 * count; i++) {
    let value = (pool[i % POOL_SIZE]! ^ hash) >>> 0;
    hash = Math.imul(hash, MULT_B) >>> 0;
    value = Math.imul(value, hash) >>> 0;
    state.push((value ^ (value >>> XSHIFT)) >>> 0);
  }
  return Array.from({ length: count }, (_, i) => BigInt(state[2 * i]!) | (BigInt(state[2 * i + 1]!) << 32n));
}

/** The seed's 32-bit words, least first, one at least. */
function words32(seed: bigint): number[] {
  const words: number[] = [];
  for (let rest = seed; rest > 0n; rest >>= 32n) words.push(Number(rest & 0xffffffffn));
  return words.length ? words : [0];
}

function mixedPool(entropy: readonly number[]): number[] {
  let hash = INIT_A;
  const hashed = (given: number): number => {
    let value = (given ^ hash) >>> 0;
    hash = Math.imul(hash, MULT_A) >>> 0;
    value = Math.imul(value, hash) >>> 0;
    return (value ^ (value >>> XSHIFT)) >>> 0;
  };
  const mixed = (x: number, y: number): number => {
    const value = (Math.imul(x, MIX_MULT_L) - Math.imul(y, MIX_MULT_R)) >>> 0;
    return (value ^ (value >>> XSHIFT)) >>> 0;
  };
  const pool = Array.from({ length: POOL_SIZE }, (_, i) => hashed(entropy[i] ?? 0));
  // Every word of the pool reaches every other.
  for (let from = 0; from < POOL_SIZE; from++) {
    for (let to = 0; to < POOL_SIZE; to++) if (from !== to) pool[to] = mixed(pool[to]!, hashed(pool[from]!));
  }
  for (const word of entropy.slice(POOL_SIZE)) {
    for (let to = 0; to < POOL_SIZE; to++) pool[to] = mixed(pool[to]!, hashed(word));
  }
  return pool;
}
