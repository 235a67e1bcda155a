/** The page's side: a pipeline by the same names, whose work is done in a worker. */

import type { WeightInput } from "../adapters/block_weights.js";
import type { AdapterFiles } from "../adapters/file.js";
import type { OpenOptions } from "../bundle/bundle.js";
import type { Check } from "../conformance/verify.js";
import type { BundleManifest } from "../core/manifest.js";
import type { Float } from "../core/tensor.js";
import type { SignedPack } from "../delivery/repository.js";
import { type CallOptions, checkOptions } from "../pipeline/call_options.js";
import type { RgbaPicture } from "../pipeline/output.js";
import type { Description } from "../pipeline/pipeline.js";
import { type Answer, errorOf, type Method, type Opened, type Port, type SentOpenOptions, type SentOutput, type Wish } from "./messages.js";

interface Waiting {
  readonly resolve: (value: never) => void;
  readonly reject: (error: Error) => void;
  readonly hear: (answer: Answer) => void;
}

type Unnumbered<W> = W extends Wish ? Omit<W, "id"> : never;

/** `QuadPipeline` in a worker: `new Worker(new URL("@quad/runtime/worker", import.meta.url), { type: "module" })`. */
export class WorkerPipeline {
  readonly manifest: BundleManifest;
  readonly engine: string;
  readonly threads: number;
  readonly notes: readonly string[];
  readonly #talk: Talk;

  private constructor(talk: Talk, opened: Opened) {
    this.#talk = talk;
    this.manifest = opened.manifest as BundleManifest;
    this.engine = opened.engine;
    this.threads = opened.threads;
    this.notes = opened.notes;
  }

  /** Open a bundle in a worker that nobody else talks to. */
  static async open(worker: Port, address: string | URL, options: SentOpenOptions & OpenOptions = {}): Promise<WorkerPipeline> {
    const { signal, onProgress, ...sent } = options;
    const talk = new Talk(worker);
    const hear = (answer: Answer): void => {
      if (answer.kind === "loaded") onProgress?.(answer.file, answer.loaded, answer.total);
    };
    return new WorkerPipeline(talk, await talk.ask({ kind: "open", address: String(address), options: sent }, signal, hear));
  }

  /** As `QuadPipeline.run`; a generator stays on its side, give a seed. */
  run(prompt: string | readonly string[] = "", options: Omit<CallOptions<WorkerPipeline>, "generator"> = {}): Promise<SentOutput> {
    checkOptions(options);
    const { signal, callback_on_step_end: callback, on_progress, ...sent } = options;
    const hear = (answer: Answer): void => {
      if (answer.kind === "step") void callback?.(this, answer.step, answer.timestep, answer.tensors);
      if (answer.kind === "progress") on_progress?.(answer.done, answer.total);
    };
    return this.#talk.ask({ kind: "run", prompt, options: sent, steps: callback !== undefined }, signal, hear);
  }

  set_adapters(adapter_names: string | readonly string[], weights?: WeightInput | readonly WeightInput[] | null): Promise<void> {
    return this.#call("set_adapters", adapter_names, weights);
  }

  disable_lora(): Promise<void> {
    return this.#call("disable_lora");
  }

  load_lora_weights(source: string | Uint8Array | Blob | AdapterFiles | SignedPack, adapter_name?: string): Promise<string> {
    return this.#call("load_lora_weights", source, adapter_name);
  }

  unload(adapter_name?: string): Promise<void> {
    return this.#call("unload", adapter_name);
  }

  unload_lora_weights(): Promise<void> {
    return this.#call("unload_lora_weights");
  }

  delete_adapters(adapter_names: string | readonly string[]): Promise<void> {
    return this.#call("delete_adapters", adapter_names);
  }

  get_active_adapters(): Promise<readonly string[]> {
    return this.#call("get_active_adapters");
  }

  get_list_adapters(): Promise<Readonly<Record<string, readonly string[]>>> {
    return this.#call("get_list_adapters");
  }

  /** Adapters and tasks, as they are now. */
  describe(): Promise<Description> {
    return this.#call("describe");
  }

  preview(latents: Float): Promise<RgbaPicture> {
    return this.#call("preview", latents);
  }

  /** The bundle's conformance vectors against this worker's answers. */
  verify(): Promise<readonly Check[]> {
    return this.#call("verify");
  }

  dispose(): Promise<void> {
    return this.#call("dispose");
  }

  #call<T>(method: Method, ...args: readonly unknown[]): Promise<T> {
    return this.#talk.ask({ kind: "call", method, args });
  }
}

/** Wishes on their way, by number. */
class Talk {
  readonly #port: Port;
  readonly #waiting = new Map<number, Waiting>();
  #latest = 0;

  constructor(port: Port) {
    this.#port = port;
    port.addEventListener("message", (event) => this.#hear(event.data as Answer));
  }

  ask<T>(wish: Unnumbered<Wish>, signal?: AbortSignal, hear: (answer: Answer) => void = () => undefined): Promise<T> {
    const id = ++this.#latest;
    const abort = (): void => this.#port.postMessage({ id, kind: "abort" } satisfies Wish);
    const answer = new Promise<T>((resolve, reject) => {
      this.#waiting.set(id, { resolve: resolve as Waiting["resolve"], reject, hear });
    });
    this.#port.postMessage({ ...wish, id });
    if (signal?.aborted) abort();
    signal?.addEventListener("abort", abort, { once: true });
    return answer.finally(() => signal?.removeEventListener("abort", abort));
  }

  #hear(answer: Answer): void {
    const waiting = this.#waiting.get(answer.id);
    if (answer.kind !== "done" && answer.kind !== "failed") {
      waiting?.hear(answer);
      return;
    }
    this.#waiting.delete(answer.id);
    if (answer.kind === "done") waiting?.resolve(answer.value as never);
    else waiting?.reject(errorOf(answer.name, answer.message));
  }
}
