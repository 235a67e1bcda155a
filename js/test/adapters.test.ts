/** Laws of sums: exact where ranks fit, nearest where they do not. */

import { describe, expect, test } from "vitest";
import { adapterWeights, BlockWeights, weightAt } from "../src/adapters/block_weights.js";
import { checkTensors, pad, zeroBuffers } from "../src/adapters/buffers.js";
import { nearest, type Rows } from "../src/adapters/low_rank.js";
import { mixAdapters } from "../src/adapters/weighted_sum.js";
import { CompatibilityError, UsageError } from "../src/core/errors.js";
import { type SlotTable, slotTable } from "../src/core/slots.js";
import type { Tensor } from "../src/core/tensor.js";
import { Generator } from "../src/noise/generator.js";

const [IN, OUT] = [12, 9];
const PROFILE = { encodings: {}, groups: undefined };

function rows(seed: number, count: number, size: number): Rows {
  const rng = new Generator(seed);
  return Array.from({ length: count }, () => rng.standardNormal([size]));
}

function product(a: Rows, b: Rows): Float64Array {
  const sum = new Float64Array(IN * OUT);
  for (const [k, row] of a.entries()) for (let i = 0; i < sum.length; i++) sum[i]! += b[k]![Math.floor(i / IN)]! * row[i % IN]!;
  return sum;
}

const squares = (values: Float64Array): number => values.reduce((sum, value) => sum + value * value, 0);

test("the nearest product keeps the energy that it says, and no more is lost", () => {
  const [a, b] = [rows(1, 7, IN), rows(2, 7, OUT)];
  const whole = product(a, b);
  for (const rank of [1, 3, 6, 7]) {
    const best = nearest(a, b, rank, Infinity);
    const rest = product(best.a, best.b).map((value, i) => value - whole[i]!);
    expect(best.a.length).toBe(rank);
    expect(squares(rest) / squares(whole)).toBeCloseTo(1 - best.energy, 10);
  }
  expect(nearest(a, b, 7, Infinity).energy).toBeCloseTo(1, 12);
});

test("rows that depend on each other take no channels", () => {
  const [a, b] = [rows(1, 2, IN), rows(2, 4, OUT)];
  const best = nearest([...a, ...a], b, 4, Infinity);
  expect(best.a.length).toBe(2);
  const rest = product(best.a, best.b).map((value, i) => value - product([...a, ...a], b)[i]!);
  expect(squares(rest)).toBeLessThan(1e-20);
});

function table(rank: number, mode?: "normalised"): SlotTable {
  const slot = { path: "down_blocks.0.attentions.1.q", kind: "linear", in_features: IN, out_features: OUT, rank, dtype: "int16" };
  return slotTable({ slots: [slot], ...(mode ? { mode } : {}) }, "$");
}

/** An adapter of whole numbers at the table's only slot. */
function adapter(seed: number, rank: number, of: SlotTable): ReadonlyMap<string, Tensor> {
  const path = of.slots[0]!.path;
  const numbers = (from: number, size: number): Int16Array => {
    return Int16Array.from(new Generator(from).standardNormal([size]), (value) => Math.round(3000 * value));
  };
  const scales = Float32Array.from({ length: rank }, (_, channel) => 1 + channel / 8);
  return new Map<string, Tensor>([
    [`${path}.lora_A`, { data: numbers(seed, rank * IN), shape: [rank, IN] }],
    [`${path}.lora_B`, { data: numbers(seed + 1, rank * OUT), shape: [OUT, rank] }],
    ...(of.mode ? ([[`${path}.lora_scale`, { data: scales, shape: [rank] }]] as const) : []),
  ]);
}

/** What a graph would add to a weight. */
function update(arrays: ReadonlyMap<string, Tensor>, of: SlotTable): Float64Array {
  const { path, rank } = of.slots[0]!;
  const [a, b] = [arrays.get(`${path}.lora_A`)!.data, arrays.get(`${path}.lora_B`)!.data] as [Int16Array, Int16Array];
  const scales = arrays.get("unet.lora_scales")?.data as Float32Array | undefined;
  const sum = new Float64Array(IN * OUT);
  for (let i = 0; i < sum.length; i++) {
    const [out, column] = [Math.floor(i / IN), i % IN];
    for (let k = 0; k < rank; k++) sum[i]! += b[out * rank + k]! * a[k * IN + column]! * (scales?.[k] ?? 1);
  }
  return sum;
}

describe.each([undefined, "normalised"] as const)("slots %s", (mode) => {
  test("a sum whose ranks fit is the sum of its parts", () => {
    const slots = table(8, mode);
    const zeros = zeroBuffers(slots, PROFILE);
    const parts = new Map([["one", pad(adapter(1, 3, slots), zeros)], ["two", pad(adapter(5, 4, slots), zeros)]]); // biome-ignore format: pairs
    const { buffers, notes } = mixAdapters(parts, adapterWeights(["one", "two"], [1, mode ? -0.37 : 2]), zeros);
    const expected = update(parts.get("one")!.arrays, slots);
    for (const [i, value] of update(parts.get("two")!.arrays, slots).entries()) expected[i]! += (mode ? -0.37 : 2) * value;
    const rest = update(buffers.arrays, slots).map((value, i) => value - expected[i]!);
    expect(notes).toEqual([]);
    expect(squares(rest) / squares(expected)).toBeLessThan(1e-12);
  });

  test("one that does not fit is refused where too little is kept, and said otherwise", () => {
    const slots = table(1, mode);
    const zeros = zeroBuffers(slots, PROFILE);
    const parts = new Map(["one", "two"].map((name, index) => [name, pad(adapter(9 * index, 1, slots), zeros)]));
    expect(() => mixAdapters(parts, adapterWeights(["one", "two"]), zeros)).toThrow(CompatibilityError);
    const { notes } = mixAdapters(parts, adapterWeights(["one", "two"], [1, 0.05]), zeros);
    expect(notes[0]).toMatch(/^adapters: 'one' \+ 'two' exceed the rank of 1 slots; the nearest sum keeps 0\.9\d\d at/);
  });

  test("padding adds nothing", () => {
    const [small, large] = [table(2, mode), table(6, mode)];
    const own = adapter(3, 2, small);
    const before = update(pad(own, zeroBuffers(small, PROFILE)).arrays, small);
    expect(update(pad(own, zeroBuffers(large, PROFILE)).arrays, large)).toEqual(before);
  });
});

test("the base's correction stands behind every adapter, and no weight counts for it", () => {
  const [rank, own] = [6, 2];
  const slots = table(rank, "normalised");
  const { path } = slots.slots[0]!;
  const corrected: SlotTable = { ...slots, slots: [{ ...slots.slots[0]!, correction: own }] };
  const bytes = (seed: number, size: number): Int8Array => Int8Array.from(new Generator(seed).standardNormal([size]), (x) => 30 * x);
  const file = new Map<string, Tensor>([
    [`${path}.lora_A`, { data: bytes(1, own * IN), shape: [own, IN] }],
    [`${path}.lora_B`, { data: bytes(2, OUT * own), shape: [OUT, own] }],
    [`${path}.lora_scale`, { data: Float32Array.of(0.5, 0.25), shape: [own] }],
  ]);
  const zeros = zeroBuffers(corrected, PROFILE, file);
  const base = update(zeros.arrays, corrected);
  expect(squares(base)).toBeGreaterThan(0);
  const parts = new Map(["one", "two"].map((name, seed) => [name, pad(adapter(7 * seed, 2, corrected), zeros)]));
  const plain = new Map(["one", "two"].map((name, seed) => [name, pad(adapter(7 * seed, 2, slots), zeroBuffers(slots, PROFILE))]));
  for (const weights of [{ one: 1 }, { one: 0.5 }, { one: 0 }, { one: 1, two: -0.37 }]) {
    const names = Object.keys(weights);
    const chosen = adapterWeights(names, Object.values(weights));
    const of = (all: typeof parts): typeof parts => new Map(names.map((name) => [name, all.get(name)!]));
    const alone = update(mixAdapters(of(plain), chosen, zeroBuffers(slots, PROFILE)).buffers.arrays, slots);
    const together = update(mixAdapters(of(parts), chosen, zeros).buffers.arrays, corrected);
    const rest = together.map((value, i) => value - alone[i]! - base[i]!);
    expect(squares(rest) / squares(base), JSON.stringify(weights)).toBeLessThan(1e-10);
  }
  expect(() => checkTensors("large", adapter(3, 5, slots), corrected)).toThrow("a rank from 1 to 4");
});

test("weights by block count where their blocks are", () => {
  const weights = adapterWeights(["a"], { unet: { down: 0.5, up: { block_1: [0.2, 0.4] } }, text_encoder: 0.8 } as never).get("a")!;
  expect(weights).toBeInstanceOf(BlockWeights);
  const at = (path: string): number => weightAt(weights, path);
  expect([at("down_blocks.0.x"), at("up_blocks.1.attentions.1.q"), at("up_blocks.0.x"), at("text_encoder.y")]).toEqual([0.5, 0.4, 1, 0.8]);
  expect(() => adapterWeights(["a", "a"])).toThrow(UsageError);
  expect(() => adapterWeights(["a"], Number.NaN)).toThrow(UsageError);
  expect(() => slotTable({ slots: [{ path: "x" }] }, "$")).toThrow("Object missing required field `kind`");
});
