/** Prompts, numbers and messages as Python writes them. */

import { expect, test } from "vitest";
import { WordVectors } from "../src/conditioning/embeddings.js";
import { parsePrompt, withoutTags } from "../src/conditioning/prompt_syntax.js";
import { mismatch, oneLine, QuadError, UsageError } from "../src/core/errors.js";
import { interpolate, linspace, roundHalfEven } from "../src/core/numbers.js";
import { general, quoted, shapeText } from "../src/core/text.js";

test("brackets weigh, and unmatched ones are text", () => {
  const parts = (prompt: string): [string, number][][] => {
    return parsePrompt(prompt, "a1111").map((block) => block.map(({ text, weight }) => [text, Number(weight.toFixed(4))]));
  };
  expect(parts("a (b:1.2) c")).toEqual([[["a ", 1], ["b", 1.2], [" c", 1]]]); // biome-ignore format: a list of pairs
  expect(parts("((x)) [y]")).toEqual([[["x", 1.21], [" ", 1], ["y", 0.9091]]]); // biome-ignore format: a list of pairs
  expect(parts("a) \\(b\\) :c")).toEqual([[["a) (b) :c", 1]]]);
  expect(parts("a BREAK  b BREAKFAST")).toEqual([[["a", 1]], [["b BREAKFAST", 1]]]);
  expect(parsePrompt("(a:1.2)", "plain")).toEqual([[{ text: "(a:1.2)", weight: 1 }]]);
  expect(() => parsePrompt("(a:2000)", "a1111")).toThrow(UsageError);
});

test("tags are taken out and told", () => {
  const { text, notes } = withoutTags("x <lora:ink:0.7> [a:b:0.5]");
  expect(text).toBe("x  [a:b:0.5]");
  expect(notes.length).toBe(2);
});

test("words with vectors are found alone, in any case", () => {
  const vector = { data: new Float32Array(2), shape: [1, 2] };
  const words = new WordVectors(new Map([["easy  negative", vector]]));
  expect(words.split("an EASY negative, uneasy negativeness")).toEqual(["an ", vector, ", uneasy negativeness"]);
});

test("numbers are written as Python's format g does", () => {
  const written = [1, 0.5, 1e-5, 123456789, 0.1 + 0.2, -0, 1e16, 100000, 1e6, Infinity].map(general);
  expect(written).toEqual(["1", "0.5", "1e-05", "1.23457e+08", "0.3", "-0", "1e+16", "100000", "1e+06", "inf"]);
  expect([quoted("it's"), quoted('a"b'), quoted(null), shapeText([1]), shapeText([1, null])]).toEqual([
    '"it\'s"',
    "'a\"b'",
    "None",
    "(1,)",
    "(1, None)",
  ]);
});

test("ties go to even, and lines pass through their points", () => {
  expect([0.5, 1.5, 2.5, -1.5, 2.4].map(roundHalfEven)).toEqual([0, 2, 2, -2, 2]);
  expect(interpolate(1.5, [0, 1, 2], [0, 10, 30])).toBe(20);
  expect([...linspace(0, 1, 5)]).toEqual([0, 0.25, 0.5, 0.75, 1]);
});

test("a message is one printable line", () => {
  expect(new QuadError("a\nb\u001b[2J").message).toBe("a\\nb\\x1b[2J");
  expect(oneLine("x".repeat(5000)).length).toBeLessThan(1200);
  expect(mismatch("here", 1, 2, "mend it")).toBe("here: expected 1, found 2; mend it");
});
