/** Textual inversions: words that stand for vectors where a token's own row would be read; as `quad.runtime.conditioning.embeddings`. */

import { readSafetensors } from "../bundle/safetensors.js";
import { CompatibilityError, mismatch, UnsupportedError, VerificationError } from "../core/errors.js";
import { EMBEDDINGS_FILE, type TextSpec } from "../core/manifest.js";
import type { Float } from "../core/tensor.js";
import { quoted, shapeText } from "../core/text.js";

const LETTER = /^\p{L}$/u;

/** Words and their vectors `(n, hidden)`, and where they stand in a text. */
export class WordVectors {
  readonly vectors: ReadonlyMap<string, Float>;
  readonly #byCase: ReadonlyMap<string, Float>;
  readonly #pattern: RegExp;

  constructor(vectors: ReadonlyMap<string, Float> = new Map()) {
    this.vectors = vectors;
    this.#byCase = new Map([...vectors].map(([word, array]) => [folded(word), array]));
    const words = [...vectors.keys()].sort((a, b) => b.length - a.length);
    this.#pattern = new RegExp(words.map(alone).join("|"), "giu");
  }

  /** The text in order, with vectors in place of the words that have them, whatever their case. */
  split(text: string): readonly (string | Float)[] {
    const pieces: (string | Float)[] = [];
    let end = 0;
    for (const match of this.vectors.size ? text.matchAll(this.#pattern) : []) {
      pieces.push(text.slice(end, match.index), this.#byCase.get(folded(match[0]))!);
      end = match.index + match[0].length;
    }
    return [...pieces, text.slice(end)].filter((piece) => piece !== "");
  }
}

/** The words of a bundle's `embeddings.safetensors`. Raises a `VerificationError` where it is something else. */
export function parseEmbeddings(where: string, content: Uint8Array, text: TextSpec, room: number): WordVectors {
  const place = `${where}/${EMBEDDINGS_FILE}`;
  const words = new Map<string, Float>();
  for (const [word, { data, shape }] of readSafetensors(place, content).tensors) {
    if (!(data instanceof Float32Array) || !word.trim()) {
      throw new VerificationError(mismatch(place, "float32 vectors with a word each", quoted(word), "build the bundle again"));
    }
    words.set(word, { data, shape });
  }
  if (text.first_vector_id === undefined && words.size) {
    const way = "build the bundle again, for cpu or openvino";
    throw new UnsupportedError(mismatch(place, "a bundle whose text encoder takes vectors", "one without that input", way));
  }
  for (const [word, { shape }] of words) {
    if (shape.length !== 2 || shape[1] !== text.hidden) {
      const expected = `vectors of width ${text.hidden}, as this model has`;
      const way = "use one that was trained for this model";
      throw new CompatibilityError(mismatch(`${place}, ${quoted(word)}`, expected, shapeText(shape), way));
    }
    if (!(shape[0]! >= 1 && shape[0]! <= room)) {
      const way = "use one with fewer vectors";
      throw new CompatibilityError(mismatch(`${place}, ${quoted(word)}`, `1 to ${room} vectors`, shape[0], way));
    }
  }
  return new WordVectors(words);
}

/** A pattern for the word where no letter goes on before or behind it. */
function alone(word: string): string {
  const letters = [...word];
  const before = LETTER.test(letters[0]!) ? "(?<!\\p{L})" : "";
  const behind = LETTER.test(letters.at(-1)!) ? "(?!\\p{L})" : "";
  const inside = word
    .trim()
    .split(/\s+/)
    .map((part) => part.replace(/[\^$\\.*+?()[\]{}|/-]/g, "\\$&"));
  return before + inside.join("\\s+") + behind;
}

function folded(word: string): string {
  return word.toLowerCase().trim().split(/\s+/).join(" ");
}
