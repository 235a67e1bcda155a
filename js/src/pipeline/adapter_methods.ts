/** Adapters of a pipeline, by the names of Python's methods, which are diffusers'; as `quad.runtime.lora_methods`. */

import { adapterWeights, type Weight, type WeightInput } from "../adapters/block_weights.js";
import type { AdapterMix } from "../adapters/buffers.js";
import { type AdapterFile, type AdapterFiles, readFiles, readPack } from "../adapters/file.js";
import type { AdapterStore } from "../adapters/store.js";
import { wholeFile } from "../bundle/places.js";
import type { AdapterManifest } from "../core/adapter_manifest.js";
import { mismatch, UsageError } from "../core/errors.js";
import { quoted } from "../core/text.js";
import { checkPromise } from "../delivery/offer.js";
import { fetchSigned, type SignedPack } from "../delivery/repository.js";
import type { Graph } from "../engine/graph.js";
import { Turns } from "../engine/turns.js";

/** A pack: its bytes, a file, or its place; the two files of an adapter directory; or a pack by its name in a signed repository. */
export type AdapterSource = string | URL | Uint8Array | Blob | AdapterFiles | SignedPack;

/**
 * The part of a pipeline that knows adapters. Until `set_adapters` or `disable_lora` is called, each call uses its task's own adapter; after
 * that, what they set.
 */
export abstract class AdapterMethods {
  readonly store: AdapterStore;
  protected readonly graphs: ReadonlyMap<string, Graph>;
  protected readonly turns = new Turns();
  /** As set; undefined where nothing was. */
  protected chosen: ReadonlyMap<string, Weight> | undefined;
  protected active: ReadonlyMap<string, Weight> = new Map();

  protected constructor(store: AdapterStore, graphs: ReadonlyMap<string, Graph>) {
    this.store = store;
    this.graphs = graphs;
  }

  /** Names that `set_adapters` takes. */
  get adapters(): readonly string[] {
    return this.store.names;
  }

  /** The manifest of an adapter. Raises a `UsageError` where none has that name. */
  adapter_manifest(name: string): AdapterManifest {
    return this.store.manifest(name);
  }

  /** Adapters bound at this moment; empty for the base. */
  get_active_adapters(): readonly string[] {
    return [...this.active.keys()];
  }

  /** Component -> the adapters that change it, active or not. */
  async get_list_adapters(): Promise<Readonly<Record<string, readonly string[]>>> {
    const listed: Record<string, string[]> = {};
    for (const name of this.adapters) {
      for (const part of await this.store.components(name)) listed[part] = [...(listed[part] ?? []), name];
    }
    return listed;
  }

  /**
   * Use these adapters from now on; several are added on the integer lattice. A weight is a number, or numbers by block as in diffusers.
   * Raises a `UsageError` for an unknown name or a wrong weight, a `CompatibilityError` where their ranks together exceed a slot's.
   */
  async set_adapters(adapter_names: string | readonly string[], weights?: WeightInput | readonly WeightInput[] | null): Promise<void> {
    const names = listOf("set_adapters", adapter_names, "give weights beside them");
    const chosen = adapterWeights(names, weights);
    await this.turns.take(() => this.bind(chosen));
    this.chosen = chosen;
  }

  /** Use the base from now on: zero buffers, its output bit for bit. */
  async disable_lora(): Promise<void> {
    await this.turns.take(() => this.bind(new Map()));
    this.chosen = new Map();
  }

  /**
   * Register an adapter; `set_adapters` makes it active. The answer is the name it was given. Raises a `CompatibilityError` where it was
   * packed for another bundle, a `VerificationError` where it was changed.
   */
  async load_lora_weights(source: AdapterSource, adapter_name?: string): Promise<string> {
    const file = await this.#adapterFile(source, adapter_name ?? "adapter");
    const name = this.store.register(file, adapter_name);
    if (this.active.has(name)) await this.turns.take(() => this.bind(this.active));
    return name;
  }

  async #adapterFile(source: AdapterSource, name: string): Promise<AdapterFile> {
    if (typeof source === "string" || source instanceof URL) return readPack(String(source), await wholeFile(source));
    if (typeof source !== "object" || source === null) {
      throw new UsageError(mismatch("load_lora_weights", "a pack, or its place", quoted(source), "give one"));
    }
    if ("manifest" in source) return readFiles(name, source);
    if (!("repository" in source)) return readPack(name, await wholeFile(source));
    const { where, content, terms } = await fetchSigned(source, this.store.parents);
    const file = await readPack(where, content);
    checkPromise(terms, file.manifest.name, file.manifest.parents);
    return file;
  }

  /** Unregister an adapter, or all of them; the base rules where one of them was active, and the bundle's own come back. */
  async unload(adapter_name?: string): Promise<void> {
    const names = adapter_name === undefined ? this.adapters : [adapter_name];
    for (const name of names) await this.store.unregister(name);
    if (names.some((name) => this.chosen?.has(name))) this.chosen = new Map();
    if (names.some((name) => this.active.has(name))) await this.turns.take(() => this.bind(new Map()));
  }

  /** Unregister all adapters that were loaded, and use the base. */
  async unload_lora_weights(): Promise<void> {
    await this.unload();
  }

  /** Unregister some adapters. */
  async delete_adapters(adapter_names: string | readonly string[]): Promise<void> {
    const names = listOf("delete_adapters", adapter_names, "give one, or a list");
    for (const name of names) this.adapter_manifest(name);
    for (const name of names) await this.unload(name);
  }

  /** The weighted sum of adapters as it would be bound. */
  mix(weights: ReadonlyMap<string, Weight>): Promise<AdapterMix> {
    return this.store.mix(weights);
  }

  /** Bind all graphs to these adapters, now. */
  protected async bind(weights: ReadonlyMap<string, Weight>): Promise<void> {
    const mix = await this.mix(weights);
    for (const graph of this.graphs.values()) await graph.bind(mix);
    this.active = mix.weights;
  }
}

function listOf(where: string, names: string | readonly string[], nextStep: string): readonly string[] {
  const listed = typeof names === "string" ? [names] : names;
  if (Array.isArray(listed)) return listed;
  throw new UsageError(mismatch(where, "names of adapters", quoted(names), nextStep));
}
