/**
 * Prompts as users of A1111, Forge and ComfyUI write them, into pieces of text with weights; as `quad.runtime.conditioning.prompt_syntax`.
 *
 * | written | read as |
 * |---|---|
 * | `(word)` | weight times 1.1; nested, times 1.1 for each pair |
 * | `(word:1.2)` | weight times 1.2 |
 * | `[word]` | weight divided by 1.1 |
 * | `\(` `\)` `\[` `\]` `\\` | the character itself |
 * | `BREAK` | what follows begins a new chunk of tokens |
 *
 * A bracket that is not closed counts to the prompt's end; one that was not opened is text. Round and square ones are counted apart.
 * Source: the manual of AUTOMATIC1111's stable-diffusion-webui, "Attention/emphasis".
 */

import { mismatch, UsageError } from "../core/errors.js";
import { general, quoted } from "../core/text.js";

export const SYNTAXES = ["a1111", "plain"] as const;
export type PromptSyntax = (typeof SYNTAXES)[number];

/** Some text of a prompt, and how strongly it counts. */
export interface PromptPart {
  readonly text: string;
  readonly weight: number;
}

/** What stands between two BREAKs. */
export type Block = readonly PromptPart[];

const EMPHASIS = 1.1;
const MOST_WEIGHT = 1000;
const SCANNER = /(?<escape>\\[()[\]\\]?)|(?<open>[([])|:\s*(?<weight>[+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)|(?<close>[)\]])|[^\\()[\]:]+|:/gu;
const BREAK = /(?<![\p{L}\p{N}_])BREAK(?![\p{L}\p{N}_])/u;
const TAG = /<(?:lora|lyco|hypernet):(?:[^<>:]+)(?::(?:[^<>]*))?>/g;
const BRACKETED = /\[([^[\]]*)\]/g;
const PAIRS: Readonly<Record<string, "(" | "[">> = { ")": "(", "]": "[" };
const FACTORS = { "(": EMPHASIS, "[": 1 / EMPHASIS } as const;

interface Piece {
  readonly text: string;
  readonly groups: Readonly<Record<string, string | undefined>>;
}

/** The parts of a prompt between its BREAKs, neighbours of one weight joined. Raises a `UsageError` for a weight beyond 1000. */
export function parsePrompt(prompt: string, syntax: PromptSyntax): readonly Block[] {
  if (syntax === "plain") return [prompt ? [{ text: prompt, weight: 1 }] : []];
  const pieces = [...prompt.matchAll(SCANNER)].map((match) => ({ text: match[0], groups: match.groups ?? {} }));
  return blocks(weighted(pieces, factorsOf(pieces)));
}

/** The prompt without tags such as `<lora:NAME:1>`, and a line about each piece of the syntax that quad does not do. */
export function withoutTags(prompt: string): { readonly text: string; readonly notes: readonly string[] } {
  const way = "chooses no adapter here and was taken out; use set_adapters()";
  const notes = [...prompt.matchAll(TAG)].map((tag) => `prompt: ${tag[0]} ${way}`);
  const text = prompt.replace(TAG, "");
  const editing = [...text.matchAll(BRACKETED)].find((match) => isEditing(match[1]!));
  if (editing !== undefined) {
    notes.push(`prompt: ${quoted(editing[0])} does not change the prompt between steps here; it was read as text in brackets`);
  }
  return { text, notes };
}

/** Whether square brackets hold alternatives, `a|b`, or words with a step, `a:b:0.5`. */
function isEditing(inside: string): boolean {
  return inside.includes("|") || (inside.includes(":") && /[\p{Nd}.]\s*$/u.test(inside));
}

/** Index of each bracket that counts -> the factor that it brings in, or takes out again. */
function factorsOf(pieces: readonly Piece[]): ReadonlyMap<number, number> {
  const factors = new Map<number, number>();
  const unclosed: Record<"(" | "[", number[]> = { "(": [], "[": [] };
  for (const [index, { groups }] of pieces.entries()) {
    const open = groups.open as "(" | "[" | undefined;
    const pair = groups.close === undefined ? undefined : PAIRS[groups.close]!;
    if (open !== undefined) {
      unclosed[open].push(index);
      factors.set(index, FACTORS[open]);
    } else if (groups.weight !== undefined && unclosed["("].length) {
      factors.set(unclosed["("].pop()!, Number(groups.weight)).set(index, 1);
    } else if (pair !== undefined && unclosed[pair].length) {
      unclosed[pair].pop();
      factors.set(index, 1);
    }
  }
  return factors;
}

/** The text of a prompt, piece by piece; of escapes the character alone. */
function* weighted(pieces: readonly Piece[], factors: ReadonlyMap<number, number>): Generator<PromptPart> {
  const products: Record<"(" | "[", number[]> = { "(": [1], "[": [1] };
  for (const [index, { text, groups }] of pieces.entries()) {
    const factor = factors.get(index);
    if (factor === undefined) {
      const weight = products["("].at(-1)! * products["["].at(-1)!;
      if (!(Math.abs(weight) <= MOST_WEIGHT)) {
        throw new UsageError(mismatch("prompt", `weights up to ${MOST_WEIGHT}`, general(weight), "use fewer brackets"));
      }
      yield { text: groups.escape === undefined ? text : text.slice(1), weight };
    } else if (groups.open !== undefined) {
      const kind = groups.open as "(" | "[";
      products[kind].push(products[kind].at(-1)! * factor);
    } else {
      products[PAIRS[groups.close ?? ")"]!].pop();
    }
  }
}

/** Split at BREAKs and joined where the weight stays. */
function blocks(parts: Iterable<PromptPart>): readonly Block[] {
  const split: PromptPart[][] = [[]];
  for (const part of parts) {
    const pieces = part.text.split(BREAK);
    for (const [count, piece] of pieces.entries()) {
      if (count) split.push([]);
      // White space beside BREAK belongs to it.
      const start = count ? piece.trimStart() : piece;
      const text = count < pieces.length - 1 ? start.trimEnd() : start;
      const block = split.at(-1)!;
      const last = block.at(-1);
      if (text && last?.weight === part.weight) block[block.length - 1] = { text: last.text + text, weight: part.weight };
      else if (text) block.push({ text, weight: part.weight });
    }
  }
  return split;
}
