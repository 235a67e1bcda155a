/**
 * Defaults that active adapters bring to a run beside their weights: sampler, steps and guidance, and the words that they listen to; as
 * `quad.runtime.adapter_defaults`.
 */

import { isUsed, type Weight } from "../adapters/block_weights.js";
import { CompatibilityError, mismatch, UsageError } from "../core/errors.js";
import type { BundleManifest } from "../core/manifest.js";
import type { AdapterDefaults, SamplerSettings } from "../core/sampling.js";
import type { TaskSpec } from "../core/task.js";
import { general, quoted } from "../core/text.js";
import { DISTILLED, isSampler, namedSampler } from "../samplers/names.js";

const DISTILLED_GUIDANCE = 1;
const MOST_GUIDANCE = 10_000;

/** What a bundle and its adapters say of samplers. */
export interface Presets {
  readonly adapters: ReadonlyMap<string, AdapterDefaults>;
  readonly samplers: Readonly<Record<string, SamplerSettings>>;
  readonly merged: ReadonlyMap<string, AdapterDefaults>;
}

/** Sampler and guidance that somebody wishes for. */
export interface Wishes {
  readonly sampler: string | null;
  readonly guidance: number | null;
}

/** Of the adapters in a bundle's weights, those that say how they are meant to be run. */
export function mergedDefaults(manifest: BundleManifest): ReadonlyMap<string, AdapterDefaults> {
  return new Map((manifest.merged ?? []).flatMap(({ name, defaults }) => (defaults ? [[name, defaults]] : [])));
}

/** Sampler and guidance that the caller or the active adapters ask for, and a note for each wish of an adapter that is taken, or not. */
export function jointDefaults(
  weights: ReadonlyMap<string, Weight>,
  presets: Presets,
  caller: Wishes,
): { readonly wishes: Wishes; readonly notes: readonly string[] } {
  const notes: string[] = [];
  const active = [...weights].flatMap(([name, weight]): [string, AdapterDefaults][] => {
    const defaults = presets.adapters.get(name);
    return isUsed(weight) && defaults ? [[name, defaults]] : [];
  });
  const wishes = {
    sampler: first(
      caller.sampler,
      active.map(([name, { sampler }]) => [name, sampler]),
      "sampler",
      notes,
    ),
    guidance: first(
      caller.guidance,
      active.map(([name, { guidance }]) => [name, guidance]),
      "guidance",
      notes,
    ),
  };
  return { wishes, notes };
}

/** A task with another sampler and guidance; a sampler whose guidance is distilled has 1 where none is said. */
export function withDefaults(spec: TaskSpec, wishes: Wishes, samplers: Presets["samplers"]): TaskSpec {
  const sampler = wishes.sampler === null ? spec.sampler : namedSampler(wishes.sampler, spec.sampler, samplers);
  const distilled = wishes.sampler !== null && DISTILLED.includes(sampler.kind) && !DISTILLED.includes(spec.sampler.kind);
  return { ...spec, sampler, guidance: wishes.guidance ?? (distilled ? DISTILLED_GUIDANCE : spec.guidance) };
}

/** Refuse a guidance that leaves nothing of a picture. */
export function checkedGuidance(name: string, value: number): number {
  if (!Number.isFinite(value)) throw new UsageError(mismatch(name, "a finite number", quoted(value), "choose another"));
  if (Math.abs(value) > MOST_GUIDANCE) {
    const expected = `a number from -${MOST_GUIDANCE} to ${MOST_GUIDANCE}`;
    throw new UsageError(mismatch(name, expected, general(value), "choose another, most models want 1 to 15"));
  }
  return value;
}

/** The task with a strength that leaves its sampler one step at least. */
export function reachableStrength(spec: TaskSpec): TaskSpec {
  if (spec.strength === undefined || Math.trunc(spec.sampler.steps * spec.strength) >= 1) return spec;
  return { ...spec, strength: 1 / spec.sampler.steps };
}

/** A line for each adapter, active or in the weights, none of whose trigger words the prompt has. */
export function triggerNotes(weights: ReadonlyMap<string, Weight>, presets: Presets, prompt: string): readonly string[] {
  const active = [...presets.adapters].filter(([name]) => isUsed(weights.get(name) ?? 0));
  return [...new Map([...presets.merged, ...active])].flatMap(([name, { trigger_words: words }]) => {
    const phrases = (words ?? "").split(",").map((phrase) => phrase.trim().toLowerCase());
    const heard = phrases.filter(Boolean);
    if (!heard.length || heard.some((phrase) => prompt.toLowerCase().includes(phrase))) return [];
    return [`adapter ${quoted(name)} listens to ${quoted(words)}, of which the prompt has nothing`];
  });
}

function first<T extends string | number>(
  caller: T | null,
  wishes: readonly (readonly [string, T | null])[],
  what: string,
  notes: string[],
): T | null {
  const stated = wishes.filter((wish): wish is readonly [string, T] => wish[1] !== null);
  const [chosen] = stated;
  if (caller !== null || chosen === undefined) return caller;
  const [name, wish] = chosen;
  if (typeof wish === "string" && !isSampler(wish)) {
    const expected = "a sampler that this version has";
    throw new CompatibilityError(mismatch(`adapter ${quoted(name)}`, expected, quoted(wish), "name another sampler, or update quad"));
  }
  notes.push(`${what} ${shownWish(wish)}: adapter ${quoted(name)} brings it`);
  for (const [other, own] of stated.slice(1)) {
    if (own === wish) continue;
    notes.push(`adapter ${quoted(other)} is meant for ${what} ${shownWish(own)}, which was not used: ${quoted(name)} comes first`);
  }
  return wish;
}

function shownWish(wish: string | number): string {
  return typeof wish === "string" ? wish : general(wish);
}
