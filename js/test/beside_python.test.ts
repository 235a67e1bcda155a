/** The runtime beside Python's on one bundle: the same integers, ids, words and pixels. Skipped where neither is given. */

import { createHash } from "node:crypto";
import { beforeAll, describe, expect, test } from "vitest";
import { adapterWeights } from "../src/adapters/block_weights.js";
import { AdapterStore } from "../src/adapters/store.js";
import { type Bundle, openBundle } from "../src/bundle/bundle.js";
import { DirectorySource } from "../src/bundle/source.js";
import { makeCondition } from "../src/conditioning/condition.js";
import type { Picture } from "../src/conditioning/picture.js";
import { readPrompt } from "../src/conditioning/prompt_chunks.js";
import { Tokenizer } from "../src/conditioning/tokenizer.js";
import { ConformanceVectors, samplerVector, type Vectors } from "../src/conformance/vectors.js";
import { samplerDistance } from "../src/conformance/verify.js";
import { QuadError } from "../src/core/errors.js";
import { TOKENIZER_FILE, textSpec } from "../src/core/manifest.js";
import { noiseSchedule, type TaskSpec } from "../src/core/task.js";
import type { Float, Tensor } from "../src/core/tensor.js";
import { Generator } from "../src/noise/generator.js";
import { toPicture } from "../src/pipeline/output.js";
import { QuadPipeline } from "../src/pipeline/pipeline.js";
import { bundlePath, clipTokenizer, reference, referencePictures, type TextAnswer } from "./reference.js";

function digest({ data }: { readonly data: Tensor["data"] }): string {
  return createHash("sha256")
    .update(new Uint8Array(data.buffer, data.byteOffset, data.byteLength))
    .digest("hex");
}

describe.skipIf(reference === undefined || bundlePath === undefined)("beside Python", () => {
  let bundle: Bundle;

  beforeAll(async () => {
    bundle = await openBundle(new DirectorySource(bundlePath!));
  });

  test("noise of every seed is the same to the bit", () => {
    for (const { seed, sha256 } of reference!.noise) {
      expect(digest({ data: new Generator(BigInt(seed)).standardNormal([500]) }), seed).toBe(sha256);
    }
  });

  test("prompts become the same ids, weights, notes and errors", async () => {
    compareTexts(new Tokenizer(await bundle.read(TOKENIZER_FILE), bundle.manifest.text), reference!.texts);
  });

  test("so they do with CLIP's own tokenizer, in two chunks", () => {
    const spec = { length: 77, pad_id: 49407, hidden: 8, first_vector_id: 49408, chunks: 2 };
    compareTexts(new Tokenizer(clipTokenizer(), textSpec(spec, "$")), reference!.clip);
  });

  test("adapters, alone and mixed, become the same integers", async () => {
    const store = new AdapterStore(bundle);
    await store.open();
    for (const { weights, error, digests, notes } of reference!.mixes) {
      const mixing = store.mix(adapterWeights(Object.keys(weights), Object.values(weights)));
      if (error !== undefined) {
        await expect(mixing).rejects.toThrow(error);
        continue;
      }
      const mix = await mixing;
      expect(mix.notes, JSON.stringify(weights)).toEqual(notes);
      // Where ranks do not fit, singular vectors may have another sign than LAPACK gives them: the same product of other integers.
      if (notes?.some((note) => note.includes("the nearest sum"))) continue;
      const found = Object.fromEntries([...mix.buffers.arrays].map(([name, tensor]) => [name, digest(tensor)]));
      expect(found, JSON.stringify(weights)).toEqual(digests);
    }
  });

  test("samplers walk alike on another schedule, with settings that no name has", async () => {
    const schedule = noiseSchedule({ beta_schedule: "scaled_linear", rescale_zero_snr: false, prediction: "epsilon" }, "$");
    const conformance = new ConformanceVectors({} as Vectors, referencePictures());
    for (const run of reference!.samplers) {
      const vector = samplerVector(run, "$");
      const name = `${vector.spec.kind}:${vector.spec.steps}`;
      expect(await samplerDistance(vector, schedule, conformance), name).toBeLessThan(vector.tolerance);
    }
  });

  test("pictures of any size become the same condition, and are pasted back alike", () => {
    const tensors = referencePictures();
    const count = [...tensors.keys()].filter((name) => name.endsWith("/image")).length;
    const size = { width: bundle.manifest.size, height: bundle.manifest.size };
    const task = (condition: TaskSpec["condition"], mask: TaskSpec["mask"]): TaskSpec => {
      return { ...Object.values(bundle.manifest.tasks)[0]!, condition, mask, strength: undefined, blend: undefined };
    };
    for (let number = 0; number < count; number++) {
      const stored = (name: string): Tensor => tensors.get(`${number}/${name}`)!;
      const image = pictureOf(stored("image"));
      const mask = pictureOf(stored("mask"));
      const { factor } = bundle.manifest.latent;
      const plain = makeCondition("edit", task("image", "zeros"), { image, mask: undefined, maskGrowPx: 2 }, size, factor);
      const filled = makeCondition("fill", task("masked-image", "input"), { image, mask, maskGrowPx: 2 }, size, factor);
      const holed = makeCondition("fill", task("cut-image", "input"), { image, mask, maskGrowPx: 2 }, size, factor);
      expect(plain.image!.data, `${number} plain`).toEqual(stored("plain").data);
      expect(filled.image!.data, `${number} filled`).toEqual(stored("filled").data);
      expect(filled.mask.data, `${number} mask`).toEqual(stored("filled_mask").data);
      expect(holed.image!.data, `${number} holed`).toEqual(stored("holed").data);
      expect(holed.mask.data, `${number} mask`).toEqual(stored("holed_mask").data);
      expect(toPicture(stored("made") as Float, undefined).data, `${number} picture`).toEqual(stored("picture").data);
      expect(toPicture(stored("made") as Float, filled.paste).data, `${number} pasted`).toEqual(stored("pasted").data);
    }
  });

  test("a model that is told sizes hears the same ones", async () => {
    const pipe = await QuadPipeline.open(bundlePath!, { memory: "minimal", threads: 1 });
    for (const [index, call] of reference!.sized.entries()) {
      const expected = referencePictures().get(`sized/${index}`)!;
      const { data } = (await pipe.run("the car", call)).images[0] as Float;
      const away = data.reduce((most, value, i) => Math.max(most, Math.abs(value - Number(expected.data[i]))), 0);
      expect(away, JSON.stringify(call)).toBeLessThan(1e-3);
    }
  });

  test("wrong calls are refused in the same words", async () => {
    const pipe = await QuadPipeline.open(bundlePath!, { memory: "minimal", threads: 1 });
    for (const { call, error, kind } of reference!.refusals) {
      const made = await pipe.run("a", call).then(
        () => null,
        (raised: unknown) => raised,
      );
      if (error === null) continue;
      expect(made, JSON.stringify(call)).toBeInstanceOf(QuadError);
      expect({ call, message: (made as QuadError).message, kind: (made as QuadError).name }).toEqual({ call, message: error, kind });
    }
  });
});

function pictureOf({ data, shape }: Tensor): Picture {
  return { data: data as Uint8Array, width: shape[1]!, height: shape[0]! };
}

function compareTexts(tokenizer: Tokenizer, answers: readonly TextAnswer[]): void {
  for (const { prompt, syntax, error, ...expected } of answers) {
    if (error !== undefined) {
      expect(() => readPrompt(tokenizer, prompt, syntax), prompt).toThrow(error);
      continue;
    }
    const { chunks, notes } = readPrompt(tokenizer, prompt, syntax);
    const found = { ids: chunks.map((chunk) => chunk.ids), weights: chunks.map((chunk) => chunk.weights), notes };
    expect(found, prompt).toEqual(expected);
  }
}
