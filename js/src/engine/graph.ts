/**
 * The memory plan: which graphs of a pipeline stay in memory, and which are there only while they run; as `quad.runtime.engines.graph`.
 *
 * `keep-all` holds all four. `balanced` holds the U-Net, which takes longest to load and runs longest; the others come and go around it.
 * `minimal` holds none. Graphs of further sizes and groups are loaded when they are first needed; `balanced` holds one U-Net, the latest.
 */

import type { AdapterMix } from "../adapters/buffers.js";
import { type Bundle, COMPONENTS, type OpenOptions, sizedComponents, TINY_DECODER } from "../bundle/bundle.js";
import { mismatch, throwIfAborted, UsageError, VerificationError } from "../core/errors.js";
import { graphOf, pictureSizes } from "../core/manifest.js";
import { graphName, type PictureSize } from "../core/picture_size.js";
import { inputShapes, UNET } from "../core/slots.js";
import { type Float, sameShape, type Tensor } from "../core/tensor.js";
import { quoted, shapeText } from "../core/text.js";
import type { Engine, Session, Shape } from "./engine.js";
import { Turns } from "./turns.js";

export const MEMORY_PLANS = { "keep-all": COMPONENTS, balanced: [UNET], minimal: [] } as const;
export type MemoryPlan = keyof typeof MEMORY_PLANS;

/** One graph with its adapter, as a sampler sees it. */
export interface Runnable {
  readonly inputs: ReadonlyMap<string, Shape>;
  /** The graph's first output for these and all bound inputs. */
  run(inputs: ReadonlyMap<string, Tensor>, signal?: AbortSignal): Promise<Float>;
}

/** One component's graph for one size of pictures, loaded when needed; it knows which adapters it is bound to. */
export class Graph implements Runnable {
  readonly name: string;
  /** What it is bound to, now and whenever it is loaded again. */
  mix: AdapterMix | undefined;
  readonly #load: () => Promise<Session>;
  readonly #slots: ReadonlyMap<string, readonly number[]>;
  readonly #resident: boolean;
  readonly #turns: Turns;
  #rivals: readonly Graph[] = [];
  #users = 0;
  #session: Promise<Session> | undefined;
  #inputs: ReadonlyMap<string, Shape> | undefined;

  constructor(name: string, load: () => Promise<Session>, slots: ReadonlyMap<string, readonly number[]>, resident: boolean, turns: Turns) {
    this.name = name;
    this.#load = load;
    this.#slots = slots;
    this.#resident = resident;
    this.#turns = turns;
  }

  /** Shapes of its inputs, which are known once it was loaded. */
  get inputs(): ReadonlyMap<string, Shape> {
    return this.#inputs ?? new Map();
  }

  /** When this one is loaded, those of them that nobody uses at that moment go. */
  aloneAmong(graphs: readonly Graph[]): void {
    this.#rivals = graphs.filter((graph) => graph !== this);
  }

  /** Have the graph in memory while some work is done; then it goes again, unless it is kept. */
  async loaded<T>(work: () => Promise<T>): Promise<T> {
    this.#users += 1;
    try {
      await this.#open();
      return await work();
    } finally {
      this.#users -= 1;
      if (!this.#resident) await this.giveWay();
    }
  }

  /** Go, unless somebody uses it. */
  async giveWay(): Promise<void> {
    if (this.#users || this.#session === undefined) return;
    const session = this.#session;
    this.#session = undefined;
    await (await session.catch(() => undefined))?.release();
  }

  /** Make these adapters the slot inputs. */
  async bind(mix: AdapterMix): Promise<void> {
    const isBound = this.mix?.buffers === mix.buffers;
    this.mix = mix;
    if (this.#session !== undefined && !isBound) this.#put(await this.#session, mix);
  }

  async run(inputs: ReadonlyMap<string, Tensor>, signal?: AbortSignal): Promise<Float> {
    return this.loaded(() =>
      this.#turns.take(async () => {
        throwIfAborted(signal, `graph ${this.name}`);
        return (await this.#open()).run(inputs);
      }),
    );
  }

  #open(): Promise<Session> {
    this.#session ??= this.#start().catch((error: unknown) => {
      this.#session = undefined;
      throw error;
    });
    return this.#session;
  }

  async #start(): Promise<Session> {
    for (const rival of this.#rivals) await rival.giveWay();
    const session = await this.#load();
    for (const [name, shape] of this.#slots) {
      const found = session.inputs.get(name);
      if (found === undefined || !sameShape(found as readonly number[], shape)) {
        const where = `graph ${this.name}, input ${name}`;
        throw new VerificationError(mismatch(where, shapeText(shape), found ? shapeText(found) : "none", "build the bundle again"));
      }
    }
    this.#inputs = session.inputs;
    if (this.mix !== undefined) this.#put(session, this.mix);
    return session;
  }

  #put(session: Session, mix: AdapterMix): void {
    session.bind(new Map([...this.#slots.keys()].map((name) => [name, mix.buffers.arrays.get(name)!])));
  }
}

/** The graphs of a bundle by name, under a memory plan; those of its first size that stay are loaded now. */
export async function openGraphs(
  bundle: Bundle,
  engine: Engine,
  memory: string,
  options: OpenOptions = {},
): Promise<ReadonlyMap<string, Graph>> {
  if (!Object.hasOwn(MEMORY_PLANS, memory)) {
    const plans = Object.keys(MEMORY_PLANS).join(", ");
    throw new UsageError(mismatch("memory", `one of ${plans}`, quoted(memory), "choose one of these"));
  }
  const resident: readonly string[] = MEMORY_PLANS[memory as MemoryPlan];
  const stays = (component: string): boolean => resident.includes(component === TINY_DECODER ? "vae_decoder" : component);
  const turns = new Turns();
  const graphs = new Map<string, Graph>();
  for (const { component, size, group } of places(bundle)) {
    const name = graphName(component, size, group);
    const load = async (): Promise<Session> => engine.load(name, await contentOf(bundle, component, size, group, options));
    graphs.set(name, new Graph(name, load, inputShapes(bundle.slots, component), stays(component), turns));
  }
  if (memory !== "keep-all") {
    const unets = [...graphs.values()].filter((graph) => graph.name.split(".", 1)[0] === UNET);
    for (const unet of unets) unet.aloneAmong(unets);
  }
  for (const component of resident) await graphs.get(component)!.loaded(async () => undefined);
  return graphs;
}

interface Place {
  readonly component: string;
  readonly size: PictureSize | null;
  readonly group: number;
}

/** Of every graph, those of the first size and group first. */
function places(bundle: Bundle): readonly Place[] {
  const [, ...further] = pictureSizes(bundle.manifest);
  const sized = sizedComponents(bundle.manifest);
  const extra = sized.filter((component) => component === TINY_DECODER);
  const groups = Array.from({ length: bundle.groupCount - 1 }, (_, index) => index + 1);
  return [
    ...[...COMPONENTS, ...extra].map((component) => ({ component, size: null, group: 0 })),
    ...further.flatMap((size) => sized.map((component) => ({ component, size, group: 0 }))),
    ...groups.flatMap((group) => [null, ...further].map((size) => ({ component: UNET, size, group }))),
  ];
}

async function contentOf(
  bundle: Bundle,
  component: string,
  size: PictureSize | null,
  group: number,
  options: OpenOptions,
): Promise<{ readonly model: Uint8Array; readonly data: ReadonlyMap<string, Uint8Array> }> {
  const files = graphOf(bundle.manifest.components[component]!, size, group);
  const data = new Map<string, Uint8Array>();
  for (const file of files.data_files) data.set(file.split("/").at(-1)!, await bundle.read(file, options));
  return { model: await bundle.read(files.file, options), data };
}
