/** Texts that one call has encoded already. */

import type { AdapterMix } from "../adapters/buffers.js";
import type { Float } from "../core/tensor.js";

/** Hidden states of one call's prompts that were encoded already, with the adapters of the last that were. */
export class TextMemo {
  #buffers: AdapterMix["buffers"] | undefined;
  readonly #texts = new Map<string, Float>();

  async encode(
    mix: AdapterMix,
    encode: (prompts: readonly string[]) => Promise<readonly Float[]>,
    prompts: readonly string[],
  ): Promise<readonly Float[]> {
    if (this.#buffers !== mix.buffers) this.#texts.clear();
    this.#buffers = mix.buffers;
    const missing = [...new Set(prompts)].filter((prompt) => !this.#texts.has(prompt));
    if (missing.length) for (const [index, hidden] of (await encode(missing)).entries()) this.#texts.set(missing[index]!, hidden);
    return prompts.map((prompt) => this.#texts.get(prompt)!);
  }
}
