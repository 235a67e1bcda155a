/**
 * onnxruntime-web: which of its builds, how many threads, and the options with which a graph gives the numbers that its bundle was proven with.
 *
 * Q/DQ pairs of activations are kept and computed as they are written (`session.disable_quant_qdq`): by its defaults the library may put
 * kernels with 8-bit activations in their place.
 */

import type { InferenceSession, Tensor as OrtTensor } from "onnxruntime-web";
import { BackendError, mismatch, reasonOf, UsageError } from "../core/errors.js";
import type { Numbers, Tensor } from "../core/tensor.js";
import { shapeText } from "../core/text.js";

type Library = typeof import("onnxruntime-web");
export type Shape = readonly (number | null)[];

/** How graphs are to be run. */
export interface EngineOptions {
  /** CPU threads for a graph; left out, half of the cores and at most 4, where the page may have threads. */
  readonly threads?: number | undefined;
  /** Use the GPU by WebGPU where the page has one; numbers are then the GPU's. */
  readonly webgpu?: boolean | undefined;
  /** Where the library's `.wasm` files lie, if not beside its script: an address that ends in a slash. */
  readonly wasmPaths?: string | undefined;
}

/** The files of one graph. */
export interface GraphContent {
  readonly model: Uint8Array;
  /** External data by the name that the model gives it. */
  readonly data: ReadonlyMap<string, Uint8Array>;
}

const MOST_THREADS = 4;
const FLOAT = "float";
const TYPES: Readonly<Record<string, OrtTensor.Type>> = {
  Float32Array: "float32",
  Float64Array: "float64",
  Int8Array: "int8",
  Uint8Array: "uint8",
  Int16Array: "int16",
  Uint16Array: "uint16",
  Int32Array: "int32",
  Uint32Array: "uint32",
  BigInt64Array: "int64",
  BigUint64Array: "uint64",
};

/** The library, ready for graphs of one precision. */
export class Engine {
  readonly name: "ort-web" | "ort-webgpu";
  readonly threads: number;
  /** What the user should be told of threads. */
  readonly notes: readonly string[];
  readonly #library: Library;
  readonly #precision: string;

  private constructor(library: Library, precision: string, webgpu: boolean, threads: number, notes: readonly string[]) {
    this.name = webgpu ? "ort-webgpu" : "ort-web";
    this.threads = threads;
    this.notes = notes;
    this.#library = library;
    this.#precision = precision;
  }

  /** Raises a `UsageError` for a number of threads that is none, a `BackendError` where the page has no WebGPU and it was asked for. */
  static async open(precision: string, options: EngineOptions = {}): Promise<Engine> {
    const { threads: wanted, webgpu = false } = options;
    if (wanted !== undefined && !(Number.isInteger(wanted) && wanted >= 1)) {
      throw new UsageError(mismatch("threads", "1 or more", wanted, "leave it out for the usual number"));
    }
    if (webgpu && !("gpu" in (globalThis.navigator ?? {}))) {
      throw new BackendError(mismatch("engine", "a browser with WebGPU", "none", "leave webgpu out"));
    }
    const library = await libraryFor(webgpu);
    const { threads, notes } = threadsFor(wanted);
    library.env.wasm.numThreads = threads;
    library.env.logLevel = "error";
    if (options.wasmPaths !== undefined) library.env.wasm.wasmPaths = options.wasmPaths;
    return new Engine(library, precision, webgpu, threads, notes);
  }

  /** Load a graph. Raises a `BackendError` where the library cannot. */
  async load(name: string, content: GraphContent): Promise<Session> {
    const options: InferenceSession.SessionOptions = {
      executionProviders: this.name === "ort-webgpu" ? ["webgpu", "wasm"] : ["wasm"],
      graphOptimizationLevel: "all",
      externalData: [...content.data].map(([path, data]) => ({ path, data })),
      ...(this.#precision === FLOAT ? {} : { extra: { session: { disable_quant_qdq: "1" } } }),
    };
    try {
      return new Session(name, this.#library, await this.#library.InferenceSession.create(content.model, options));
    } catch (error) {
      throw new BackendError(`engine ${this.name}: cannot load graph ${name} (${reasonOf(error)}); build the bundle again`);
    }
  }
}

/** One loaded graph: inputs that stay are bound, those of a call go before them. */
export class Session {
  /** Graph input name -> shape, null for a dynamic axis. */
  readonly inputs: ReadonlyMap<string, Shape>;
  readonly #where: string;
  readonly #library: Library;
  readonly #session: InferenceSession;
  readonly #types: ReadonlyMap<string, OrtTensor.Type>;
  readonly #wrapped = new WeakMap<Tensor, OrtTensor>();
  #bound: Record<string, OrtTensor> = {};

  constructor(name: string, library: Library, session: InferenceSession) {
    const tensors = session.inputMetadata.flatMap((input) => (input.isTensor ? [input] : []));
    this.#where = `graph ${name}`;
    this.#library = library;
    this.#session = session;
    this.#types = new Map(tensors.map((input) => [input.name, input.type]));
    this.inputs = new Map(tensors.map((input) => [input.name, input.shape.map((size) => (typeof size === "number" ? size : null))]));
  }

  /** Give inputs that stay until bound again; the arrays must not be written to. Raises a `BackendError` for what does not fit. */
  bind(inputs: ReadonlyMap<string, Tensor>): void {
    const bound = Object.fromEntries([...inputs].map(([name, tensor]) => [name, this.#wrap(name, tensor)]));
    this.#bound = { ...this.#bound, ...bound };
  }

  /** The graph's first output for these and all bound inputs. Raises a `BackendError` where one is missing, or the library failed. */
  async run(inputs: ReadonlyMap<string, Tensor>): Promise<Tensor<Float32Array>> {
    const own = Object.fromEntries([...inputs].map(([name, tensor]) => [name, this.#wrap(name, tensor)]));
    const feeds = { ...this.#bound, ...own };
    const missing = [...this.inputs.keys()].find((name) => !Object.hasOwn(feeds, name));
    if (missing !== undefined) {
      throw new BackendError(mismatch(this.#where, `${this.inputs.size} inputs`, `none for ${missing}`, "bind it before run"));
    }
    const [name] = this.#session.outputNames;
    try {
      const output = (await this.#session.run(feeds, [name!]))[name!]!;
      const data = (await output.getData()) as Float32Array;
      return { data, shape: output.dims };
    } catch (error) {
      throw new BackendError(`engine: ${this.#where} failed (${reasonOf(error)}); report it with the bundle's name`);
    }
  }

  /** Give its memory back. */
  async release(): Promise<void> {
    await this.#session.release();
  }

  #wrap(name: string, tensor: Tensor): OrtTensor {
    const wrapped = this.#wrapped.get(tensor) ?? this.#checked(name, tensor);
    this.#wrapped.set(tensor, wrapped);
    return wrapped;
  }

  #checked(name: string, { data, shape }: Tensor): OrtTensor {
    const where = `${this.#where}, input ${name}`;
    const way = "this is a bug or another graph's adapter";
    const own = this.inputs.get(name);
    if (own === undefined) throw new BackendError(mismatch(where, "an input of the graph", "none of that name", way));
    const type = typeOf(data);
    const fits = own.length === shape.length && own.every((size, axis) => size === null || size === shape[axis]);
    if (!fits || type !== this.#types.get(name)) {
      throw new BackendError(mismatch(where, `${this.#types.get(name)} ${shapeText(own)}`, `${type} ${shapeText(shape)}`, way));
    }
    return new this.#library.Tensor(type, data as never, shape);
  }
}

/** The build of the library for where this runs: each is loaded only when it is the one. */
async function libraryFor(webgpu: boolean): Promise<Library> {
  if (webgpu) return (await import("onnxruntime-web/webgpu")) as Library;
  return isNode() ? import("onnxruntime-web") : ((await import("onnxruntime-web/wasm")) as Library);
}

function isNode(): boolean {
  return globalThis.process?.versions?.node !== undefined;
}

function typeOf(data: Numbers): OrtTensor.Type {
  return TYPES[data.constructor.name]!;
}

/** Threads that a graph runs on, and what is to be said where they are fewer than could be. */
function threadsFor(wanted: number | undefined): { readonly threads: number; readonly notes: readonly string[] } {
  if (!isNode() && !globalThis.crossOriginIsolated) {
    const why = "threads: 1, since the page is not cross-origin isolated; serve it with COOP and COEP headers for more";
    return { threads: 1, notes: wanted === 1 ? [] : [why] };
  }
  const cores = globalThis.navigator?.hardwareConcurrency ?? MOST_THREADS;
  return { threads: wanted ?? Math.min(MOST_THREADS, Math.ceil(cores / 2)), notes: [] };
}
