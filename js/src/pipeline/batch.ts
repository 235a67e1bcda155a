/** One call for several pictures: prompts times pictures of each, one request each, with seeds of their own; as `quad.runtime.batch`. */

import { InputError, mismatch, UsageError } from "../core/errors.js";
import type { Float } from "../core/tensor.js";
import { quoted, shapeText } from "../core/text.js";
import { checkedSeed, Generator, type Seed } from "../noise/generator.js";
import { type Request, wholeNumber } from "./request.js";

const MOST_PICTURES = 10_000;

/** The part of a call that says how many pictures there are. */
export interface BatchWords {
  readonly prompt: string | readonly string[];
  readonly negative_prompt: string | readonly string[];
  readonly num_images_per_prompt: number;
  readonly seed: Seed;
  readonly generator: Generator | readonly Generator[] | undefined;
  readonly latents: Float | undefined;
}

/** A request for each picture, the pictures of one prompt together; picture k has the seed `seed + k`. */
export function expand(
  common: Omit<Request, "prompt" | "negative_prompt" | "seed" | "generator" | "latents">,
  words: BatchWords,
): Request[] {
  const prompts = textsOf("prompt", words.prompt);
  const given = textsOf("negative_prompt", words.negative_prompt);
  const negatives = typeof words.negative_prompt === "string" ? prompts.map(() => given[0]!) : given;
  if (negatives.length !== prompts.length) {
    const expected = `one string, or ${prompts.length} as prompt`;
    throw new UsageError(mismatch("negative_prompt", expected, negatives.length, "give one for each"));
  }
  const each = wholeNumber("num_images_per_prompt", words.num_images_per_prompt);
  const most = Math.floor(MOST_PICTURES / Math.max(1, prompts.length));
  if (each < 1 || each > most) {
    throw new UsageError(mismatch("num_images_per_prompt", `a whole number, 1 to ${most}`, each, "choose one in that range"));
  }
  if (!prompts.length) throw new UsageError(mismatch("prompt", "one string or more", "an empty list", "give one"));
  const count = prompts.length * each;
  const first = checkedSeed(words.seed);
  const { generator } = words;
  const listed = Array.isArray(generator) ? (generator as readonly Generator[]) : undefined;
  if (listed !== undefined && listed.length !== count) {
    throw new UsageError(mismatch("generator", `one, or ${count} as there are pictures`, listed.length, "give one for each"));
  }
  for (const each of listed ?? (generator === undefined ? [] : [generator])) {
    if (!(each instanceof Generator))
      throw new UsageError(mismatch("generator", "a Generator", quoted(each), "give new Generator(seed), or seed"));
  }
  const latents = latentsOf(words.latents, count);
  return Array.from({ length: count }, (_, index) => ({
    ...common,
    prompt: prompts[Math.floor(index / each)]!,
    negative_prompt: negatives[Math.floor(index / each)]!,
    seed: seedOf(words.seed, first + BigInt(index)),
    generator: listed?.[index] ?? (generator as Generator | undefined),
    latents: latents?.[index],
  }));
}

/** As the caller writes seeds: a number where one was given and the seed is one. */
function seedOf(given: Seed, seed: bigint): Seed {
  return typeof given === "number" && seed <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(seed) : seed;
}

function textsOf(name: string, given: string | readonly string[]): readonly string[] {
  const listed = typeof given === "string" ? [given] : given;
  if (Array.isArray(listed) && listed.every((text) => typeof text === "string")) return listed;
  throw new UsageError(mismatch(name, "one string, or a list of strings", quoted(given), "give texts"));
}

/** Those of each picture, `(1, c, h, w)`. */
function latentsOf(given: Float | undefined, count: number): readonly Float[] | undefined {
  if (given === undefined) return undefined;
  const { data, shape } = given;
  if (typeof data?.slice !== "function" || !Array.isArray(shape)) {
    throw new InputError(mismatch("latents", "{ data: Float32Array, shape }", quoted(given), "give those of a callback"));
  }
  if (shape.length !== 4 || shape[0] !== count) {
    const expected = `an array of floats (${count}, c, h, w)`;
    throw new InputError(mismatch("latents", expected, shapeText(shape), "draw as many as there are pictures"));
  }
  const size = data.length / count;
  return Array.from({ length: count }, (_, index) => ({
    data: data.slice(index * size, (index + 1) * size),
    shape: [1, ...shape.slice(1)],
  }));
}
