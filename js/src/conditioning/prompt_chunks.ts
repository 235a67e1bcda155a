/**
 * A prompt's tokens in chunks, each as long as the text encoder reads at once; as `quad.runtime.conditioning.prompt_chunks`.
 *
 * A chunk holds the tokenizer's begin and end and the tokens between them, 75 of CLIP's 77. Where one is full and another follows, the tokens
 * behind its last comma move on, if they are few.
 * Source: the manual of AUTOMATIC1111's stable-diffusion-webui, "Infinite prompt length".
 */

import { contextLength, mostChunks } from "../core/manifest.js";
import type { Float } from "../core/tensor.js";
import { WordVectors } from "./embeddings.js";
import { type Block, type PromptSyntax, parsePrompt, withoutTags } from "./prompt_syntax.js";
import { type Tokenizer, unreadNotes } from "./tokenizer.js";

/** Tokens that may move to the next chunk, so that it begins behind a comma. */
const MOST_MOVED = 20;

/** One call of the text encoder: `(length,)` ids and weights, and `(length, hidden)` vectors where textual inversions stand for tokens. */
export interface Chunk {
  readonly ids: readonly number[];
  readonly weights: readonly number[];
  readonly vectors: Float32Array | undefined;
}

/** A prompt as the text encoder reads it, and what the user should be told of it. */
export interface PromptTokens {
  readonly chunks: readonly Chunk[];
  readonly notes: readonly string[];
}

/** One token and its weight, or the vectors of a word, which stay together. */
interface Token {
  readonly id: number;
  readonly weight: number;
  readonly vectors: Float | undefined;
}

/** The tokens of a prompt. Raises a `UsageError` for a weight that is none. */
export function readPrompt(tokenizer: Tokenizer, prompt: string, syntax: PromptSyntax, words = new WordVectors()): PromptTokens {
  const { frame, text: spec } = tokenizer;
  if (frame === undefined) {
    const { ids, unknown, dropped } = tokenizer.framed(prompt);
    const padded = Array.from({ length: spec.length }, (_, place) => ids[place] ?? spec.pad_id);
    const chunk = { ids: padded, weights: padded.map(() => 1), vectors: undefined };
    return { chunks: [chunk], notes: unreadNotes(unknown, dropped, spec.length) };
  }
  const { text, notes: tagNotes } = syntax === "plain" ? { text: prompt, notes: [] } : withoutTags(prompt);
  const notes = [...tagNotes];
  const { tokens, unknown } = tokensOf(tokenizer, parsePrompt(text, syntax), words);
  const most = mostChunks(spec);
  let blocks = tokens;
  if (blocks.length > most) {
    notes.push(`prompt: BREAK begins chunk ${most + 1}, which this bundle has not (--prompt-chunks); its parts were read as one`);
    blocks = [blocks.flat()];
  }
  const split = new Split(tokenizer.room, most, tokenizer.comma);
  for (const [number, block] of blocks.entries()) {
    if (number) split.nextChunkIfAny();
    for (const token of block) split.add(token);
  }
  const chunks = split.chunks.map((own) => chunkOf(tokenizer, frame, own));
  return { chunks, notes: [...notes, ...unreadNotes(unknown, split.dropped, contextLength(spec))] };
}

/** The tokens of each block, and the words that have none. */
function tokensOf(
  tokenizer: Tokenizer,
  blocks: readonly Block[],
  words: WordVectors,
): { readonly tokens: readonly (readonly Token[])[]; readonly unknown: readonly string[] } {
  const unknown = new Set<string>();
  const tokens = blocks.map((block) =>
    block.flatMap(({ text, weight }) =>
      words.split(text).flatMap((piece): Token[] => {
        if (typeof piece !== "string") return [{ id: tokenizer.text.first_vector_id ?? 0, weight, vectors: piece }];
        const { ids, unknown: strange } = tokenizer.idsOf(piece);
        for (const word of strange) unknown.add(word);
        return ids.map((id) => ({ id, weight, vectors: undefined }));
      }),
    ),
  );
  return { tokens, unknown: [...unknown] };
}

/** Chunks while they are filled; what is beyond the last is counted. */
class Split {
  readonly chunks: Token[][] = [[]];
  dropped = 0;
  readonly #room: number;
  readonly #most: number;
  readonly #comma: number | undefined;
  #lastComma = -1;

  constructor(room: number, most: number, comma: number | undefined) {
    this.#room = room;
    this.#most = most;
    this.#comma = comma;
  }

  nextChunkIfAny(): void {
    if (this.#mayGoOn) this.#nextChunk([]);
  }

  /** Put a token where it belongs; once something found no room, nothing behind it is read. */
  add(token: Token): void {
    const isComma = token.vectors === undefined && token.id === this.#comma;
    const size = places(token);
    if (this.#places(0) === this.#room && this.#mayGoOn) {
      const isNear = this.#lastComma >= 0 && this.#places(this.#lastComma) <= MOST_MOVED;
      const begin = isNear && !isComma ? this.#lastComma + 1 : this.#last.length;
      this.#nextChunk(this.#last.splice(begin));
    }
    if (this.#places(0) + size > this.#room && this.#mayGoOn) this.#nextChunk([]);
    if (this.dropped || this.#places(0) + size > this.#room) {
      this.dropped += size;
      return;
    }
    if (isComma) this.#lastComma = this.#last.length;
    this.#last.push(token);
  }

  get #mayGoOn(): boolean {
    return this.chunks.length < this.#most;
  }

  get #last(): Token[] {
    return this.chunks.at(-1)!;
  }

  #nextChunk(tokens: Token[]): void {
    this.chunks.push(tokens);
    this.#lastComma = -1;
  }

  /** Places that the last chunk's tokens from an index on take. */
  #places(begin: number): number {
    return this.#last.slice(begin).reduce((sum, token) => sum + places(token), 0);
  }
}

function places(token: Token): number {
  return token.vectors?.shape[0] ?? 1;
}

/** Begin, tokens, end and padding; begin and end are one token each, or not there. */
function chunkOf({ text }: Tokenizer, frame: readonly number[], tokens: readonly Token[]): Chunk {
  const half = frame.length / 2;
  const ids = Array<number>(text.length).fill(text.pad_id);
  const weights = Array<number>(text.length).fill(1);
  const hasVectors = tokens.some((token) => token.vectors !== undefined);
  const vectors = hasVectors ? new Float32Array(text.length * text.hidden) : undefined;
  let place = half;
  ids.splice(0, half, ...frame.slice(0, half));
  for (const token of tokens) {
    if (token.vectors !== undefined) vectors?.set(token.vectors.data, place * text.hidden);
    for (let i = 0; i < places(token); i++, place++) {
      ids[place] = token.id;
      weights[place] = token.weight;
    }
  }
  ids.splice(place, half, ...frame.slice(half));
  return { ids, weights, vectors };
}
