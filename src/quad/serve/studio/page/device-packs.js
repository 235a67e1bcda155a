/** Packs that somebody has put into this page: kept in the browser for the bundle that they are for, each with the version before it. */

import { BackendError } from "./backend.js";

const STORE = "quad-packs";
const LORA = /\.(safetensors|bin|pt|ckpt)$/i;

/** @typedef {{ current: Blob, previous: Blob | null }} Versions */

export class Packs {
  #pipe;
  /** @type {Map<string, Versions>} */
  #versions = new Map();

  /** @param {any} pipe a `WorkerPipeline` */
  constructor(pipe) {
    this.#pipe = pipe;
  }

  /** @param {string} name */
  has(name) {
    return this.#versions.has(name);
  }

  /** @param {string} name */
  hasPrevious(name) {
    return (this.#versions.get(name)?.previous ?? null) !== null;
  }

  /** Load what an earlier visit has left; what cannot be read any more goes. */
  async restore() {
    const store = await this.#store();
    for (const { url } of (await store?.keys()) ?? []) {
      const [bundle, name, version] = new URL(url).pathname.split("/").slice(1).map(decodeURIComponent);
      if (bundle !== this.#pipe.manifest.sha256 || name === undefined || version !== "current") continue;
      const current = await read(store, url);
      const previous = await read(store, this.#address(name, "previous"));
      try {
        if (current === null) continue;
        await this.#pipe.load_lora_weights(current, name);
        this.#versions.set(name, { current, previous });
      } catch {
        await this.#keep(name, undefined);
      }
    }
  }

  /**
   * Use a pack from now on. Rejects what is none, or was made for another bundle.
   *
   * @param {string} name
   * @param {File} file
   */
  async install(name, file) {
    if (LORA.test(file.name)) {
      throw new BackendError(`${file.name}: expected a pack (.qpack), found a LoRA file; make one of it with quad adapt`, "UsageError");
    }
    await this.#pipe.load_lora_weights(file, name);
    await this.#keep(name, { current: file, previous: this.#versions.get(name)?.current ?? null });
  }

  /**
   * Go back to the version before; where there is none, the adapter goes, or the bundle's own of that name comes back.
   *
   * @param {string} name
   */
  async rollback(name) {
    const previous = this.#versions.get(name)?.previous ?? null;
    if (previous === null) {
      if (!this.has(name))
        throw new BackendError(`adapter ${name}: expected one that was installed here, found the bundle's own`, "UsageError");
      await this.#pipe.unload(name);
      await this.#keep(name, undefined);
      return;
    }
    await this.#pipe.load_lora_weights(previous, name);
    await this.#keep(name, { current: previous, previous: null });
  }

  /**
   * @param {string} name
   * @param {Versions | undefined} versions
   */
  async #keep(name, versions) {
    if (versions === undefined) this.#versions.delete(name);
    else this.#versions.set(name, versions);
    const store = await this.#store();
    for (const version of /** @type {const} */ (["previous", "current"])) {
      const content = versions?.[version] ?? null;
      // A full disk costs the next visit the pack, not this one.
      if (content === null) await store?.delete(this.#address(name, version));
      else await store?.put(this.#address(name, version), new Response(content)).catch(() => undefined);
    }
  }

  /** @returns {Promise<Cache | undefined>} none where the page has no storage */
  async #store() {
    return globalThis.caches?.open(STORE).catch(() => undefined);
  }

  /**
   * @param {string} name
   * @param {"current" | "previous"} version
   */
  #address(name, version) {
    return `${location.origin}/${[this.#pipe.manifest.sha256, name, version].map(encodeURIComponent).join("/")}`;
  }
}

/**
 * @param {Cache | undefined} store
 * @param {string} address
 * @returns {Promise<Blob | null>}
 */
async function read(store, address) {
  const response = await store?.match(address);
  return response ? response.blob() : null;
}
