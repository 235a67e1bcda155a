/** Prompts to token ids, and what of a prompt the model cannot read; as `quad.runtime.conditioning.tokenizer`. */

import { Tokenizer as Encoder } from "@huggingface/tokenizers";
import { mismatch, reasonOf, VerificationError } from "../core/errors.js";
import type { TextSpec } from "../core/manifest.js";
import { quoted } from "../core/text.js";

/** Ids of a text, and the words of it that have none. */
export interface Ids {
  readonly ids: readonly number[];
  readonly unknown: readonly string[];
}

/** Lines about words that the model does not know, and tokens beyond the last that it reads. */
export function unreadNotes(unknown: readonly string[], dropped: number, length: number): readonly string[] {
  const words = unknown.map(quoted).join(", ");
  return [
    ...(unknown.length ? [`prompt: this model does not know ${words}; it reads them as unknown words`] : []),
    ...(dropped ? [`prompt: ${dropped} tokens beyond the first ${length} were not read`] : []),
  ];
}

/** A `tokenizer.json` with a fixed length. */
export class Tokenizer {
  readonly text: TextSpec;
  /** Ids that begin and end every text, two or none; undefined where the tokenizer frames it otherwise. */
  readonly frame: readonly number[] | undefined;
  /** Id of a comma alone, undefined where it has no one id. */
  readonly comma: number | undefined;
  readonly #encoder: Encoder;
  readonly #unknownId: number | undefined;

  /** Raises a `VerificationError` where the content is no tokenizer. */
  constructor(content: Uint8Array, text: TextSpec) {
    try {
      const json = JSON.parse(new TextDecoder().decode(content)) as TokenizerJson;
      this.#encoder = new Encoder({ ...json, pre_tokenizer: withUnicodeWords(json.pre_tokenizer) }, {});
      const word = json.model?.unk_token;
      this.#unknownId = word == null ? undefined : this.#encoder.token_to_id(word);
    } catch (error) {
      const found = `something else (${reasonOf(error)})`;
      throw new VerificationError(mismatch("tokenizer", "a tokenizer", found, "build the bundle again"));
    }
    this.text = text;
    const frame = this.#encoder.encode("").ids;
    this.frame = frame.length === 0 || frame.length === 2 ? frame : undefined;
    const comma = this.idsOf(",").ids;
    this.comma = comma.length === 1 ? comma[0] : undefined;
  }

  /** Tokens of a text that are read at once: all but the frame. */
  get room(): number {
    return this.text.length - (this.frame?.length ?? 0);
  }

  /** Ids of a text of any length without the frame. */
  idsOf(text: string): Ids {
    const { ids, tokens } = this.#encoder.encode(text, { add_special_tokens: false });
    const unknown: string[] = [];
    let end = 0;
    const known = (ids as readonly (number | undefined)[]).map((id, index) => {
      // Words come lowered; the text has them in the same order, as they were written.
      const word = tokens[index]!;
      const place = text.toLowerCase().indexOf(word, end);
      if (place >= 0) end = place + word.length;
      if (id !== undefined && id !== this.#unknownId) return id;
      if (place >= 0 || id === undefined) unknown.push(place < 0 ? word : text.slice(place, end));
      return this.#unknownId ?? this.text.pad_id;
    });
    return { ids: known, unknown: [...new Set(unknown)] };
  }

  /** Ids of a text as the tokenizer itself frames it, at most as many as the model reads, and how many were left out. */
  framed(text: string): Ids & { readonly dropped: number } {
    const { ids, unknown } = this.idsOf(text);
    const whole = this.#encoder.encode(text).ids;
    const specials = whole.length - ids.length;
    const before = Math.max(0, whole.indexOf(ids[0] ?? whole.length));
    const kept = ids.slice(0, this.text.length - specials);
    const behind = whole.slice(before + ids.length);
    return { ids: [...whole.slice(0, before), ...kept, ...behind], unknown, dropped: ids.length - kept.length };
  }
}

const WORD = "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\u200c\\u200d]";
const NO_WORD = WORD.replace("[", "[^").replace("]", "\\s]");

/** The library's `Whitespace` knows words of ASCII alone, that of the format letters of any script: the same as a `Split`. */
function withUnicodeWords(step: PreTokenizer | null | undefined): PreTokenizer | null | undefined {
  if (step?.type === "Sequence") return { ...step, pretokenizers: step.pretokenizers?.map((each) => withUnicodeWords(each) ?? each) };
  if (step?.type !== "Whitespace") return step;
  return { type: "Split", pattern: { Regex: `${WORD}+|${NO_WORD}+` }, behavior: "Removed", invert: true };
}

interface PreTokenizer {
  readonly type: string;
  readonly pretokenizers?: readonly PreTokenizer[] | undefined;
  readonly [field: string]: unknown;
}

interface TokenizerJson {
  readonly pre_tokenizer?: PreTokenizer | null;
  readonly model?: { readonly unk_token?: string | null };
}
