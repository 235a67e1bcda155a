/** The adapters of one bundle, its own and those loaded beside it: a manifest by name, and buffers while they are used. */

import type { Bundle, OpenOptions } from "../bundle/bundle.js";
import type { AdapterManifest } from "../core/adapter_manifest.js";
import { mismatch, UsageError } from "../core/errors.js";
import type { AdapterDefaults } from "../core/sampling.js";
import { TEXT_ENCODER, UNET } from "../core/slots.js";
import type { TaskSpec } from "../core/task.js";
import { quoted } from "../core/text.js";
import { isUsed, type Weight } from "./block_weights.js";
import { type AdapterMix, type Buffers, checkTensors, pad, type ZeroBuffers, zeroBuffers } from "./buffers.js";
import { readCorrection } from "./correction.js";
import { type AdapterFile, checkParents, shippedManifest, shippedTensors } from "./file.js";
import { mixAdapters, strengthNotes } from "./weighted_sum.js";

type Weights = ReadonlyMap<string, Weight>;

interface Entry {
  readonly manifest: AdapterManifest;
  buffers: Buffers | undefined;
  readonly load: (options: OpenOptions) => Promise<Buffers>;
}

/** Adapters by name; the bundle's own are read when they are first used. */
export class AdapterStore {
  zeros: ZeroBuffers;
  readonly #bundle: Bundle;
  readonly #entries = new Map<string, Entry>();
  #latest: AdapterMix | undefined;

  constructor(bundle: Bundle) {
    this.#bundle = bundle;
    this.zeros = zeroBuffers(bundle.slots, bundle.profile);
  }

  /** Read the base's correction, and the manifests of the bundle's own adapters. Raises a `CompatibilityError` where one was packed for another bundle. */
  async open(options: OpenOptions = {}): Promise<void> {
    this.zeros = zeroBuffers(this.#bundle.slots, this.#bundle.profile, await readCorrection(this.#bundle, options));
    for (const name of this.#bundle.manifest.adapters) await this.#registerShipped(name, options);
  }

  /** Digests of what the bundle was made of. */
  get parents(): Readonly<Record<string, string>> {
    return this.#bundle.manifest.parents;
  }

  get names(): readonly string[] {
    return [...this.#entries.keys()];
  }

  /** The manifest of an adapter. Raises a `UsageError` where none has that name; the message lists those there are. */
  manifest(name: string): AdapterManifest {
    return this.#entry(name).manifest;
  }

  /** Register an adapter from outside the bundle; one of its name is replaced. The answer is what it is called. */
  register(file: AdapterFile, name = file.manifest.name): string {
    checkParents(file.manifest, this.#bundle);
    checkTensors(file.manifest.name, file.tensors, this.#bundle.slots);
    const buffers = pad(file.tensors, this.zeros);
    this.#set(name, { manifest: file.manifest, buffers, load: async () => buffers });
    return name;
  }

  /** Let go of an adapter; one that its bundle ships under that name is registered again in its place. */
  async unregister(name: string): Promise<void> {
    this.manifest(name);
    if (this.#bundle.manifest.adapters.includes(name)) await this.#registerShipped(name, {});
    else this.#entries.delete(name);
    this.#latest = undefined;
  }

  /** Have an adapter's tensors in memory before it is used. */
  async preload(name: string, options: OpenOptions = {}): Promise<void> {
    await this.#buffers(name, options);
  }

  /** The weighted sum of adapters; one alone at weight 1 and the base are mixes too. */
  async mix(weights: Weights, options: OpenOptions = {}): Promise<AdapterMix> {
    for (const name of weights.keys()) this.manifest(name);
    const used = new Map([...weights].filter(([, weight]) => isUsed(weight)));
    if (this.#latest !== undefined && sameWeights(this.#latest.weights, weights)) return this.#latest;
    const parts = new Map<string, Buffers>();
    for (const name of used.keys()) parts.set(name, await this.#buffers(name, options));
    const rooms = new Map([...used.keys()].map((name) => [name, this.manifest(name).headroom]));
    const notes = strengthNotes(used, rooms, this.#bundle.slots);
    const group = Math.max(0, ...[...used.keys()].map((name) => this.manifest(name).group));
    const [only] = parts.values();
    const isPlain = used.size === 1 && used.values().next().value === 1;
    const mixed = !parts.size || isPlain ? { buffers: only ?? this.zeros, notes: [] } : mixAdapters(parts, used, this.zeros);
    this.#latest = { weights: new Map(weights), buffers: mixed.buffers, notes: [...mixed.notes, ...notes], group };
    return this.#latest;
  }

  /** The bundle's tasks; an adapter's own entry goes before the bundle's, because an OLSS table belongs to the adapter. */
  tasks(): ReadonlyMap<string, TaskSpec> {
    const tasks = new Map(Object.entries(this.#bundle.manifest.tasks));
    for (const [name, { manifest }] of this.#entries) {
      for (const [task, spec] of Object.entries(manifest.tasks)) tasks.set(task, { ...spec, adapter: name });
    }
    return tasks;
  }

  /** Adapter name -> how it is meant to be run, of those that say so. */
  defaults(): ReadonlyMap<string, AdapterDefaults> {
    return new Map([...this.#entries].flatMap(([name, { manifest }]) => (manifest.defaults ? [[name, manifest.defaults]] : [])));
  }

  /** The graphs that an adapter changes. */
  async components(name: string): Promise<readonly string[]> {
    const { arrays } = await this.#buffers(name, {});
    const own = [...arrays].filter(([input, tensor]) => tensor !== this.zeros.arrays.get(input) && /\.lora_[AB]$/.test(input));
    return [UNET, TEXT_ENCODER].filter((part) => own.some(([input]) => input.startsWith(`${TEXT_ENCODER}.`) === (part === TEXT_ENCODER)));
  }

  async #buffers(name: string, options: OpenOptions): Promise<Buffers> {
    const entry = this.#entry(name);
    entry.buffers ??= await entry.load(options);
    return entry.buffers;
  }

  #entry(name: string): Entry {
    const entry = this.#entries.get(name);
    if (entry === undefined) {
      const way = String(name).endsWith(".safetensors")
        ? "pack it first: quad adapt BUNDLE NAME=FILE -o NAME.qpack, then load_lora_weights"
        : "choose one of these; a pack is loaded by load_lora_weights";
      throw new UsageError(mismatch("adapter", `one of ${this.names.join(", ") || "none loaded"}`, quoted(name), way));
    }
    return entry;
  }

  async #registerShipped(name: string, options: OpenOptions): Promise<void> {
    const manifest = await shippedManifest(this.#bundle, name, options);
    const load = async (own: OpenOptions): Promise<Buffers> => {
      const tensors = await shippedTensors(this.#bundle, name, manifest, own);
      checkTensors(name, tensors, this.#bundle.slots);
      return pad(tensors, this.zeros);
    };
    this.#set(name, { manifest, buffers: undefined, load });
  }

  #set(name: string, entry: Entry): void {
    this.#entries.set(name, entry);
    this.#latest = undefined;
  }
}

function sameWeights(a: Weights, b: Weights): boolean {
  const [left, right] = [[...a], [...b]];
  return left.length === right.length && left.every(([name, weight], index) => right[index]![0] === name && right[index]![1] === weight);
}
