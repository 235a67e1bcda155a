/**
 * A bundle on a web server: files come in ranges, each kept as it arrives, so that a download that broke off goes on where it was.
 *
 * A whole file lies in the cache under its digest, and is trusted as little as the server: whoever reads it compares it again. A server that
 * knows no ranges sends the file in one piece. What has no digest yet, `bundle.json`, is asked for each time; where nobody answers, the
 * latest answer stands, so that a page opens offline what it has opened before.
 */

import { BackendError, InputError, mismatch, reasonOf, throwIfAborted } from "../core/errors.js";
import { quoted } from "../core/text.js";
import { type ByteCache, defaultCache } from "./cache.js";
import type { BundleSource, ReadOptions } from "./source.js";

const RANGE_BYTES = 8 * 2 ** 20;

/** Nobody is there who would know the file, as far as one can tell. */
class NoAnswer extends BackendError {}

/** How a server is asked. */
export interface HttpOptions {
  readonly cache?: ByteCache | undefined;
  readonly fetch?: typeof fetch | undefined;
  /** Sent with every request: a token, where the server asks for one. */
  readonly headers?: Readonly<Record<string, string>> | undefined;
  /** Bytes of one range. */
  readonly rangeBytes?: number | undefined;
}

/** The files below an address. */
export class HttpSource implements BundleSource {
  readonly name: string;
  readonly #cache: ByteCache;
  readonly #fetch: typeof fetch;
  readonly #headers: Readonly<Record<string, string>>;
  readonly #rangeBytes: number;

  constructor(address: string | URL, options: HttpOptions = {}) {
    const place = String(address);
    if (!URL.canParse(place, globalThis.location?.href)) {
      throw new InputError(mismatch("bundle", "an address", quoted(place), "check it"));
    }
    this.name = new URL(place, globalThis.location?.href).href.replace(/\/+$/, "");
    this.#cache = options.cache ?? defaultCache();
    this.#fetch = options.fetch ?? ((request, init) => globalThis.fetch(request, init));
    this.#headers = options.headers ?? {};
    this.#rangeBytes = options.rangeBytes ?? RANGE_BYTES;
  }

  async read(file: string, options: ReadOptions = {}): Promise<Uint8Array | undefined> {
    const { sha256, size, signal } = options;
    throwIfAborted(signal, `${this.name}/${file}`);
    if (sha256 === undefined || size === undefined) return this.#latest(file, options);
    const cached = await this.#cache.get(sha256);
    if (cached?.length === size) {
      options.onProgress?.(size, size);
      return cached;
    }
    const content = size > this.#rangeBytes ? await this.#ranges(file, sha256, size, options) : await this.#whole(file, options);
    if (content?.length === size) await this.#keep(sha256, content);
    return content;
  }

  /** Forget a file that turned out to be another than its digest says. */
  async forget(sha256: string): Promise<void> {
    await this.#cache.remove(sha256);
  }

  async #ranges(file: string, sha256: string, size: number, options: ReadOptions): Promise<Uint8Array | undefined> {
    const content = new Uint8Array(size);
    const count = Math.ceil(size / this.#rangeBytes);
    const key = (index: number): string => `${sha256}.${this.#rangeBytes}.${index}`;
    for (let index = 0; index < count; index++) {
      const begin = index * this.#rangeBytes;
      const end = Math.min(begin + this.#rangeBytes, size);
      let part = await this.#cache.get(key(index));
      if (part?.length !== end - begin) {
        const response = await this.#ask(file, options.signal, { Range: `bytes=${begin}-${end - 1}` });
        if (response === undefined) return undefined;
        if (response.status !== 206) return this.#body(file, response, options);
        part = await this.#body(file, response, { signal: options.signal });
        if (part.length !== end - begin) {
          throw new BackendError(mismatch(`${this.name}/${file}`, `${end - begin} bytes of a range`, part.length, "try again"));
        }
        await this.#keep(key(index), part);
      }
      content.set(part, begin);
      options.onProgress?.(end, size);
    }
    for (let index = 0; index < count; index++) await this.#cache.remove(key(index));
    return content;
  }

  /** The file as the server has it now; its latest answer where there is no connection. */
  async #latest(file: string, options: ReadOptions): Promise<Uint8Array | undefined> {
    const key = `latest ${this.name}/${file}`;
    try {
      const content = await this.#whole(file, options);
      if (content !== undefined) await this.#keep(key, content);
      return content;
    } catch (error) {
      const content = error instanceof NoAnswer ? await this.#cache.get(key) : undefined;
      if (content === undefined) throw error;
      return content;
    }
  }

  async #whole(file: string, options: ReadOptions): Promise<Uint8Array | undefined> {
    const response = await this.#ask(file, options.signal, {});
    return response === undefined ? undefined : this.#body(file, response, options);
  }

  /** Undefined where the server has no such file. */
  async #ask(file: string, signal: AbortSignal | undefined, headers: Record<string, string>): Promise<Response | undefined> {
    const address = `${this.name}/${file.split("/").map(encodeURIComponent).join("/")}`;
    let response: Response;
    try {
      // Whatever is cached, is so under its digest: the browser's own cache would hold it twice.
      response = await this.#fetch(address, {
        headers: { ...this.#headers, ...headers },
        cache: "no-store",
        ...(signal ? { signal } : {}),
      });
    } catch (error) {
      throwIfAborted(signal, address);
      throw new NoAnswer(mismatch(address, "an answer", reasonOf(error), "check the connection and try again"));
    }
    if (response.status === 404 || response.status === 410) return undefined;
    const message = mismatch(address, "the file", `status ${response.status}`, "check the address");
    if (response.status >= 500) throw new NoAnswer(message);
    if (!response.ok) throw new BackendError(message);
    return response;
  }

  async #body(file: string, response: Response, options: ReadOptions): Promise<Uint8Array> {
    const parts: Uint8Array[] = [];
    let loaded = 0;
    try {
      const reader = response.body?.getReader();
      for (let chunk = await reader?.read(); chunk?.done === false; chunk = await reader?.read()) {
        parts.push(chunk.value);
        loaded += chunk.value.length;
        options.onProgress?.(loaded, options.size);
        throwIfAborted(options.signal, `${this.name}/${file}`);
      }
    } catch (error) {
      throwIfAborted(options.signal, `${this.name}/${file}`);
      throw new NoAnswer(mismatch(`${this.name}/${file}`, "the whole file", `it broke off (${reasonOf(error)})`, "try again"));
    }
    const content = new Uint8Array(loaded);
    let place = 0;
    for (const part of parts) {
      content.set(part, place);
      place += part.length;
    }
    return content;
  }

  /** A full disk costs the next visit a download, not this one its picture. */
  async #keep(key: string, content: Uint8Array): Promise<void> {
    await this.#cache.put(key, content).catch(() => undefined);
  }
}
