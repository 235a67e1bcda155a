/** What a page and its worker say to each other. */

import type { Weight } from "../adapters/block_weights.js";
import {
  BackendError,
  CompatibilityError,
  InputError,
  QuadError,
  RefusedError,
  StoppedError,
  UnsupportedError,
  UsageError,
  VerificationError,
} from "../core/errors.js";
import type { CallOptions, PipelineOutput } from "../pipeline/call_options.js";
import type { PipelineOptions } from "../pipeline/pipeline.js";
import type { StepTensors } from "../pipeline/stages.js";

/** The options of a call that can cross; the others stay on their side. */
export type SentOptions = Omit<CallOptions, "signal" | "callback_on_step_end" | "on_progress" | "generator">;
/** The options of opening that can cross. */
export type SentOpenOptions = Omit<PipelineOptions, "signal" | "onProgress" | "cache">;

/** What the page wants; `id` is the number of the wish. */
export type Wish =
  | { readonly id: number; readonly kind: "open"; readonly address: string; readonly options: SentOpenOptions }
  | {
      readonly id: number;
      readonly kind: "run";
      readonly prompt: string | readonly string[];
      readonly options: SentOptions;
      readonly steps: boolean;
    }
  | { readonly id: number; readonly kind: "call"; readonly method: Method; readonly args: readonly unknown[] }
  | { readonly id: number; readonly kind: "abort" };

/** Methods of a pipeline whose arguments and answers can cross. */
export type Method =
  | "set_adapters"
  | "disable_lora"
  | "load_lora_weights"
  | "unload"
  | "unload_lora_weights"
  | "delete_adapters"
  | "get_active_adapters"
  | "get_list_adapters"
  | "describe"
  | "preview"
  | "verify"
  | "dispose";

/** What the worker answers. */
export type Answer =
  | { readonly id: number; readonly kind: "done"; readonly value: unknown }
  | { readonly id: number; readonly kind: "failed"; readonly name: string; readonly message: string }
  | { readonly id: number; readonly kind: "step"; readonly step: number; readonly timestep: number; readonly tensors: StepTensors }
  | { readonly id: number; readonly kind: "progress"; readonly done: number; readonly total: number }
  | { readonly id: number; readonly kind: "loaded"; readonly file: string; readonly loaded: number; readonly total: number | undefined };

/** What a page is told of a bundle that its worker has opened. */
export interface Opened {
  readonly manifest: unknown;
  readonly adapters: readonly string[];
  readonly engine: string;
  readonly threads: number;
  readonly notes: readonly string[];
}

/** The result of a call as it crosses: weights by block are told as `by block`. */
export interface SentOutput extends Omit<PipelineOutput, "adapters"> {
  readonly adapters: ReadonlyMap<string, number | "by block">;
}

/** A side of the conversation: a worker as its page sees it, or the worker's own scope. */
export interface Port {
  postMessage(message: unknown, transfer?: Transferable[]): void;
  addEventListener(type: "message", listener: (event: MessageEvent) => void): void;
}

const ERRORS: Readonly<Record<string, new (message: string) => Error>> = {
  BackendError,
  CompatibilityError,
  InputError,
  QuadError,
  RefusedError,
  StoppedError,
  UnsupportedError,
  UsageError,
  VerificationError,
};

/** An error of its own class, from its name and words. */
export function errorOf(name: string, message: string): Error {
  return new (ERRORS[name] ?? Error)(message);
}

/** A weight as it crosses. */
export function sentWeight(weight: Weight): number | "by block" {
  return typeof weight === "number" ? weight : "by block";
}
