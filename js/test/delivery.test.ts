/** Packs from a signed repository of quad's, at three moments of it: what fits is used, what anybody changed is not. */

import { readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { openBundle } from "../src/bundle/bundle.js";
import { MemoryCache } from "../src/bundle/cache.js";
import { DirectorySource } from "../src/bundle/source.js";
import { BackendError, CompatibilityError, UsageError, VerificationError } from "../src/core/errors.js";
import { RELEASE } from "../src/delivery/offer.js";
import { fetchSigned, type VerifiedPack } from "../src/delivery/repository.js";
import { QuadPipeline } from "../src/index.js";
import { bundlePath } from "./reference.js";

const folder = process.env.QUAD_TEST_REFERENCE;
const REPOSITORY = "https://example.test/repo";
const DAY = 24 * 3600 * 1000;

type Change = (file: string, content: Uint8Array) => Uint8Array;

test("the release is the package's", () => {
  expect(RELEASE).toBe(JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8")).version);
});

describe.skipIf(bundlePath === undefined || folder === undefined)("a signed repository", () => {
  let cache: MemoryCache;
  let parents: Readonly<Record<string, string>>;

  beforeEach(async () => {
    cache = new MemoryCache();
    ({ parents } = (await openBundle(new DirectorySource(bundlePath!))).manifest);
  });

  afterEach(() => {
    vi.unstubAllGlobals();
    vi.useRealTimers();
  });

  /** Serve a moment of a repository, its files changed on the way. */
  function serve(moment: string, change: Change = (_, content) => content): void {
    vi.stubGlobal("fetch", async (address: string) => {
      const file = decodeURIComponent(String(address).slice(REPOSITORY.length + 1));
      const content = await readFile(`${folder}/${moment}/${file}`).catch(() => undefined);
      if (content === undefined) return new Response("", { status: 404 });
      return new Response(change(file, new Uint8Array(content)) as Uint8Array<ArrayBuffer>);
    });
  }

  function fetched(pack = "ink"): Promise<VerifiedPack> {
    const root = readFileSync(`${folder}/repository/1/metadata/1.root.json`, "utf8");
    return fetchSigned({ repository: REPOSITORY, root, pack }, parents, cache);
  }

  test("gives the newest pack that fits and is not withdrawn", async () => {
    for (const [moment, version] of [
      ["1", 1],
      ["2", 2],
      ["3", 1],
    ] as const) {
      // biome-ignore format: pairs
      serve(`repository/${moment}`);
      expect((await fetched()).terms.version).toBe(version);
      expect((await fetched("ink:1")).content).toEqual(new Uint8Array(readFileSync(`${folder}/1.qpack`)));
    }
    await expect(fetched("ink:2")).rejects.toThrow(/expected a pack on offer, found version 2 revoked: blurred/);
    await expect(fetched("paper")).rejects.toThrow(UsageError);
  });

  test("is believed as it was last, not as it was before", async () => {
    serve("repository/2");
    await fetched();
    serve("repository/1");
    await expect(fetched()).rejects.toThrow(VerificationError);
    serve("repository/3");
    expect((await fetched()).terms.version).toBe(1);
  });

  test("is refused where other keys have signed it", async () => {
    serve("other/2");
    await expect(fetched()).rejects.toThrow(VerificationError);
  });

  test.each(["timestamp", "snapshot", "targets"])("is refused where one word of %s is another", async (role) => {
    serve("repository/2", (file, content) => {
      if (!file.endsWith(`${role}.json`)) return content;
      const { signed, ...rest } = JSON.parse(new TextDecoder().decode(content));
      return new TextEncoder().encode(JSON.stringify({ ...rest, signed: { ...signed, expires: "2099-01-01T00:00:00Z" } }));
    });
    await expect(fetched()).rejects.toThrow(VerificationError);
  });

  test("is refused where a byte of the pack is another, and taken once it is right", async () => {
    serve("repository/2", (file, content) => (file.endsWith(".qpack") ? content.with(-1, content.at(-1)! ^ 1) : content));
    await expect(fetched()).rejects.toThrow(/tampered pack/);
    serve("repository/2");
    expect((await fetched()).terms.version).toBe(2);
  });

  test("is refused when it has expired, known or not", async () => {
    serve("repository/2");
    await fetched();
    vi.useFakeTimers({ now: Date.now() + 8 * DAY, toFake: ["Date"] });
    await expect(fetched()).rejects.toThrow(/timestamp\.json that has not expired.*\(freeze\)/);
    cache = new MemoryCache();
    await expect(fetched()).rejects.toThrow(VerificationError);
  });

  test("gives nothing to another bundle, and says where nobody answers", async () => {
    serve("repository/2");
    parents = { ...parents, slots: "0".repeat(64) };
    await expect(fetched()).rejects.toThrow(CompatibilityError);
    serve("nothing");
    await expect(fetched()).rejects.toThrow(BackendError);
  });

  test("gives a pipeline an adapter", async () => {
    serve("repository/2");
    const pipe = await QuadPipeline.open(bundlePath!, { threads: 1, memory: "minimal" });
    const root = readFileSync(`${folder}/repository/1/metadata/1.root.json`, "utf8");
    expect(await pipe.load_lora_weights({ repository: REPOSITORY, root, pack: "ink" }, "signed")).toBe("signed");
    await pipe.set_adapters("signed");
    expect(pipe.get_active_adapters()).toEqual(["signed"]);
  });
});
