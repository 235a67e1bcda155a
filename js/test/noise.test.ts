/** Noise beside NumPy's: 1,000 seeds, and seeds of any size. The digests are NumPy 2's, `default_rng(seed).standard_normal(256)`, float64. */

import { createHash } from "node:crypto";
import { expect, test } from "vitest";
import { UsageError } from "../src/core/errors.js";
import { Generator } from "../src/noise/generator.js";
import stored from "./data/noise.json" with { type: "json" };

const bytes = (values: Float64Array): Uint8Array => new Uint8Array(values.buffer);

test("1,000 seeds give the same numbers to the bit", () => {
  const digest = createHash("sha256");
  for (let seed = 0; seed < stored.seeds; seed++) digest.update(bytes(new Generator(seed).standardNormal([stored.count])));
  expect(digest.digest("hex")).toBe(stored.sha256);
});

test("seeds beyond 32, 64 and 128 bits too", () => {
  for (const { seed, sha256 } of stored.large) {
    const numbers = new Generator(BigInt(seed)).standardNormal([stored.count]);
    expect(createHash("sha256").update(bytes(numbers)).digest("hex"), seed).toBe(sha256);
  }
});

test("one stream goes on where it was left", () => {
  const [whole, parts] = [new Generator(7), new Generator(7)];
  const both = [...parts.standardNormal([3]), ...parts.standardNormal([2, 2])];
  expect([...whole.standardNormal([7])]).toEqual(both);
});

test("a seed that is none is refused", () => {
  for (const seed of [-1, 0.5, Number.NaN, 2 ** 60, "1" as unknown as number]) expect(() => new Generator(seed)).toThrow(UsageError);
});
