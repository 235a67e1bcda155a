/** Files over HTTP: in ranges, going on where a download broke off, from the cache, and given up. */

import { createHash } from "node:crypto";
import { describe, expect, test } from "vitest";
import { CacheStorageCache, MemoryCache } from "../src/bundle/cache.js";
import { sha256 } from "../src/bundle/digest.js";
import { HttpSource } from "../src/bundle/http_source.js";
import { BackendError, StoppedError } from "../src/core/errors.js";

const CONTENT = Uint8Array.from({ length: 1000 }, (_, i) => i % 251);
const DIGEST = createHash("sha256").update(CONTENT).digest("hex");

interface Asked {
  readonly address: string;
  readonly range: string | null;
}

/** A server of one file; `fails` says which of its answers break off. */
function server(knowsRanges: boolean, fails: (index: number) => boolean = () => false): { fetch: typeof fetch; asked: Asked[] } {
  const asked: Asked[] = [];
  const answer = async (input: RequestInfo | URL, init?: RequestInit): Promise<Response> => {
    const range = new Headers(init?.headers).get("Range");
    asked.push({ address: String(input), range });
    if (init?.signal?.aborted) throw new DOMException("aborted", "AbortError");
    if (!String(input).endsWith("/unet/model.onnx")) return new Response("", { status: 404 });
    if (fails(asked.length - 1)) throw new TypeError("network error");
    const [begin, end] = /bytes=(\d+)-(\d+)/
      .exec(range ?? "")
      ?.slice(1)
      .map(Number) ?? [0, CONTENT.length - 1];
    if (!knowsRanges || range === null) return new Response(CONTENT);
    return new Response(CONTENT.slice(begin, end! + 1), { status: 206 });
  };
  return { fetch: answer as typeof fetch, asked };
}

const open = (fetch: typeof globalThis.fetch, cache = new MemoryCache()): HttpSource => {
  return new HttpSource("https://example.test/bundle/", { fetch, cache, rangeBytes: 300 });
};
const WANTED = { sha256: DIGEST, size: CONTENT.length };

test("a large file comes in ranges, with progress, and once", async () => {
  const { fetch, asked } = server(true);
  const source = open(fetch);
  const loaded: number[] = [];
  const content = await source.read("unet/model.onnx", { ...WANTED, onProgress: (bytes) => loaded.push(bytes) });
  expect(content).toEqual(CONTENT);
  expect(asked.map(({ range }) => range)).toEqual(["bytes=0-299", "bytes=300-599", "bytes=600-899", "bytes=900-999"]);
  expect(loaded).toEqual([300, 600, 900, 1000]);
  expect(await source.read("unet/model.onnx", WANTED)).toEqual(CONTENT);
  expect(asked.length).toBe(4);
});

test("what broke off goes on where it was, on another visit too", async () => {
  const cache = new MemoryCache();
  const broken = server(true, (index) => index === 2);
  await expect(open(broken.fetch, cache).read("unet/model.onnx", WANTED)).rejects.toThrow(BackendError);
  const { fetch, asked } = server(true);
  expect(await open(fetch, cache).read("unet/model.onnx", WANTED)).toEqual(CONTENT);
  expect(asked.map(({ range }) => range)).toEqual(["bytes=600-899", "bytes=900-999"]);
});

test("a server that knows no ranges sends the whole", async () => {
  const { fetch, asked } = server(false);
  expect(await open(fetch).read("unet/model.onnx", WANTED)).toEqual(CONTENT);
  expect(asked.length).toBe(1);
});

test("what is not there is undefined, and what is given up is told", async () => {
  const { fetch } = server(true);
  expect(await open(fetch).read("bundle.json")).toBeUndefined();
  const signal = AbortSignal.abort();
  await expect(open(fetch).read("unet/model.onnx", { ...WANTED, signal })).rejects.toThrow(StoppedError);
});

test("a file that is another is forgotten", async () => {
  const { fetch, asked } = server(true);
  const source = open(fetch);
  await source.read("unet/model.onnx", WANTED);
  await source.forget(DIGEST);
  await source.read("unet/model.onnx", WANTED);
  expect(asked.length).toBe(8);
});

test("what has no digest is asked for each time, and offline the latest answer stands", async () => {
  const cache = new MemoryCache();
  const online = server(false);
  for (let i = 0; i < 2; i++) expect(await open(online.fetch, cache).read("unet/model.onnx")).toEqual(CONTENT);
  expect(online.asked.length).toBe(2);
  const offline = server(false, () => true);
  expect(await open(offline.fetch, cache).read("unet/model.onnx")).toEqual(CONTENT);
  await expect(open(offline.fetch).read("unet/model.onnx")).rejects.toThrow("check the connection and try again");
});

test("names are quoted in addresses", async () => {
  const { fetch, asked } = server(true);
  await open(fetch).read("adapters/a b#c/adapter.json");
  expect(asked[0]!.address).toBe("https://example.test/bundle/adapters/a%20b%23c/adapter.json");
});

describe("Cache storage", () => {
  test("keeps bytes by key", async () => {
    const entries = new Map<string, Response>();
    const opened = {
      match: async (address: string) => entries.get(address)?.clone(),
      put: async (address: string, response: Response) => void entries.set(address, response),
      delete: async (address: string) => entries.delete(address),
    };
    const cache = new CacheStorageCache("test", { open: async () => opened } as unknown as CacheStorage);
    await cache.put("a/b", CONTENT);
    expect(await cache.get("a/b")).toEqual(CONTENT);
    await cache.remove("a/b");
    expect(await cache.get("a/b")).toBeUndefined();
  });
});

test("digests are SHA-256", async () => {
  expect(await sha256(CONTENT)).toBe(DIGEST);
});

test("a server's no is no: only where nobody answers does its latest answer stand", async () => {
  const cache = new MemoryCache();
  const status = (code: number) => (async () => new Response("{}", { status: code })) as typeof fetch;
  expect(await open(status(200), cache).read("bundle.json")).toBeDefined();
  expect(await open(status(502), cache).read("bundle.json")).toBeDefined();
  await expect(open(status(401), cache).read("bundle.json")).rejects.toThrow("status 401");
});

test("headers of the caller go with every request", async () => {
  const asked: Headers[] = [];
  const fetch = (async (_: string, init: RequestInit) => {
    asked.push(new Headers(init.headers));
    return new Response(CONTENT, { status: 200 });
  }) as typeof globalThis.fetch;
  const source = new HttpSource("https://example.test/bundle/", {
    fetch,
    cache: new MemoryCache(),
    headers: { Authorization: "Bearer a" },
  });
  await source.read("bundle.json");
  await source.read("unet/model.onnx", WANTED);
  expect(asked.map((headers) => headers.get("Authorization"))).toEqual(["Bearer a", "Bearer a"]);
});
