/** Where the files of a bundle come from. What a source gives is not trusted: `Bundle.read` compares every byte with the manifest. */

import { BackendError, InputError, mismatch, reasonOf } from "../core/errors.js";

/** How a file is read. */
export interface ReadOptions {
  /** What the file is to be, where that is known: its cache key, and how long it is. */
  readonly sha256?: string | undefined;
  readonly size?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((loaded: number, total: number | undefined) => void) | undefined;
}

/** The files of one bundle by their names in its manifest. */
export interface BundleSource {
  /** For messages. */
  readonly name: string;
  /** All bytes of a file; undefined where there is none. Raises a `BackendError` where it cannot be read. */
  read(file: string, options?: ReadOptions): Promise<Uint8Array | undefined>;
}

/** Files in memory. */
export class MemorySource implements BundleSource {
  readonly name: string;
  readonly #files: ReadonlyMap<string, Uint8Array>;

  constructor(files: ReadonlyMap<string, Uint8Array>, name = "bundle") {
    this.name = name;
    this.#files = files;
  }

  async read(file: string): Promise<Uint8Array | undefined> {
    return this.#files.get(file);
  }
}

/** A directory on disk, in Node. */
export class DirectorySource implements BundleSource {
  readonly name: string;

  constructor(path: string) {
    this.name = path.replace(/\/+$/, "");
  }

  async read(file: string, options: ReadOptions = {}): Promise<Uint8Array | undefined> {
    const { readFile } = nodeFiles();
    try {
      return new Uint8Array(await readFile(`${this.name}/${file}`, options.signal ? { signal: options.signal } : {}));
    } catch (error) {
      const code = (error as { code?: string }).code;
      if (code === "ENOENT" || code === "ENOTDIR") return undefined;
      throw new BackendError(mismatch(`${this.name}/${file}`, "something that can be read", reasonOf(error), "check its permissions"));
    }
  }
}

/** Node's file system, found without an import that a bundler would follow into a page. */
export function nodeFiles(): typeof import("node:fs/promises") {
  const files = globalThis.process?.getBuiltinModule?.("node:fs/promises");
  if (files === undefined) throw new InputError(mismatch("bundle", "an address", "a path, where there is no Node 20.16", "give a URL"));
  return files;
}

/** Whether a text is an address rather than a path. */
export function isAddress(place: string): boolean {
  return /^(https?|blob|data):/i.test(place) || globalThis.process?.versions?.node === undefined;
}
