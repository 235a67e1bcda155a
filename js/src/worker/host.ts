/** The worker's side: one pipeline that does what its page asks. */

import { verify } from "../conformance/verify.js";
import { mismatch, reasonOf, UsageError } from "../core/errors.js";
import type { Float } from "../core/tensor.js";
import type { CallOptions } from "../pipeline/call_options.js";
import { QuadPipeline } from "../pipeline/pipeline.js";
import { type Answer, type Method, type Opened, type Port, type SentOutput, sentWeight, type Wish } from "./messages.js";

/** Answer the wishes that come to a port. */
export function serve(port: Port): void {
  const host = new Host(port);
  port.addEventListener("message", (event) => host.hear(event.data as Wish));
}

class Host {
  readonly #port: Port;
  readonly #aborts = new Map<number, AbortController>();
  #pipe: QuadPipeline | undefined;

  constructor(port: Port) {
    this.#port = port;
  }

  hear(wish: Wish): void {
    if (wish.kind === "abort") {
      this.#aborts.get(wish.id)?.abort();
      return;
    }
    const abort = new AbortController();
    this.#aborts.set(wish.id, abort);
    this.#do(wish, abort.signal)
      .then(
        (value) => this.#answer({ id: wish.id, kind: "done", value }),
        (error: unknown) => {
          const name = error instanceof Error ? error.name : "Error";
          this.#answer({ id: wish.id, kind: "failed", name, message: reasonOf(error) });
        },
      )
      .finally(() => this.#aborts.delete(wish.id));
  }

  async #do(wish: Exclude<Wish, { kind: "abort" }>, signal: AbortSignal): Promise<unknown> {
    if (wish.kind === "open") return this.#open(wish, signal);
    const pipe = this.#pipe;
    if (pipe === undefined) throw new UsageError(mismatch("worker", "an opened bundle", "none", "open one first"));
    return wish.kind === "run" ? this.#run(pipe, wish, signal) : this.#call(pipe, wish.method, wish.args);
  }

  async #open({ id, address, options }: Extract<Wish, { kind: "open" }>, signal: AbortSignal): Promise<Opened> {
    const onProgress = (file: string, loaded: number, total: number | undefined): void => {
      this.#answer({ id, kind: "loaded", file, loaded, total });
    };
    const pipe = await QuadPipeline.open(address, { ...options, signal, onProgress });
    this.#pipe = pipe;
    const { manifest, adapters, engine, threads, notes } = pipe;
    return { manifest, adapters, engine, threads, notes };
  }

  async #run(pipe: QuadPipeline, { id, prompt, options, steps }: Extract<Wish, { kind: "run" }>, signal: AbortSignal): Promise<SentOutput> {
    const watched: CallOptions<QuadPipeline> = steps
      ? { callback_on_step_end: (_, step, timestep, tensors) => this.#answer({ id, kind: "step", step, timestep, tensors }) }
      : {};
    const on_progress = (done: number, total: number): void => this.#answer({ id, kind: "progress", done, total });
    const output = await pipe.run(prompt, { ...options, ...watched, on_progress, signal });
    const adapters = new Map([...output.adapters].map(([name, weight]) => [name, sentWeight(weight)]));
    return { ...output, adapters };
  }

  async #call(pipe: QuadPipeline, method: Method, args: readonly unknown[]): Promise<unknown> {
    if (method === "verify") return verify(pipe);
    if (method === "describe") return pipe.describe();
    if (method === "preview") return pipe.preview(args[0] as Float);
    if (method === "get_active_adapters") return pipe.get_active_adapters();
    const own = pipe[method] as (...own: readonly unknown[]) => Promise<unknown>;
    return own.apply(pipe, [...args]);
  }

  #answer(answer: Answer): void {
    this.#port.postMessage(answer);
  }
}
