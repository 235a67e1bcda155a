/** Where downloaded files lie between visits: bytes by a key, no more. What comes out is compared with its digest before it is used. */

/** Bytes by key. A cache that has lost a key answers undefined; one that has no room may forget. */
export interface ByteCache {
  get(key: string): Promise<Uint8Array | undefined>;
  put(key: string, content: Uint8Array): Promise<void>;
  remove(key: string): Promise<void>;
}

/** For as long as the page or process lives. */
export class MemoryCache implements ByteCache {
  readonly #contents = new Map<string, Uint8Array>();

  async get(key: string): Promise<Uint8Array | undefined> {
    return this.#contents.get(key);
  }

  async put(key: string, content: Uint8Array): Promise<void> {
    this.#contents.set(key, content);
  }

  async remove(key: string): Promise<void> {
    this.#contents.delete(key);
  }
}

/** In the browser's Cache storage, under a name of its own. */
export class CacheStorageCache implements ByteCache {
  readonly #name: string;
  readonly #storage: CacheStorage;

  constructor(name = "quad", storage: CacheStorage = globalThis.caches) {
    this.#name = name;
    this.#storage = storage;
  }

  async get(key: string): Promise<Uint8Array | undefined> {
    const response = await (await this.#open()).match(address(key));
    return response === undefined ? undefined : new Uint8Array(await response.arrayBuffer());
  }

  async put(key: string, content: Uint8Array): Promise<void> {
    await (await this.#open()).put(address(key), new Response(content as Uint8Array<ArrayBuffer>));
  }

  async remove(key: string): Promise<void> {
    await (await this.#open()).delete(address(key));
  }

  #open(): Promise<Cache> {
    return this.#storage.open(this.#name);
  }
}

/** In the browser's own file system (OPFS), a file for each key in one folder. */
export class OriginFileCache implements ByteCache {
  readonly #name: string;

  constructor(name = "quad") {
    this.#name = name;
  }

  async get(key: string): Promise<Uint8Array | undefined> {
    try {
      const file = await (await this.#folder()).getFileHandle(key);
      return new Uint8Array(await (await file.getFile()).arrayBuffer());
    } catch (error) {
      if (isMissing(error)) return undefined;
      throw error;
    }
  }

  async put(key: string, content: Uint8Array): Promise<void> {
    const file = await (await this.#folder()).getFileHandle(key, { create: true });
    // What is written counts when the stream is closed: a page that goes away before leaves nothing half-written.
    const stream = await file.createWritable();
    await stream.write(content as Uint8Array<ArrayBuffer>);
    await stream.close();
  }

  async remove(key: string): Promise<void> {
    try {
      await (await this.#folder()).removeEntry(key);
    } catch (error) {
      if (!isMissing(error)) throw error;
    }
  }

  async #folder(): Promise<FileSystemDirectoryHandle> {
    return (await navigator.storage.getDirectory()).getDirectoryHandle(this.#name, { create: true });
  }
}

/** The cache that lasts longest here: Cache storage where the page has it, else memory. */
export function defaultCache(): ByteCache {
  return globalThis.caches === undefined ? new MemoryCache() : new CacheStorageCache();
}

/** Cache storage takes addresses; this one names no host that could be asked. */
function address(key: string): string {
  return `https://quad.invalid/${encodeURIComponent(key)}`;
}

function isMissing(error: unknown): boolean {
  return error instanceof DOMException && error.name === "NotFoundError";
}
