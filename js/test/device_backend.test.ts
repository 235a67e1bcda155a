/** The page's own backend in Chromium: what it says of a bundle, the pictures that Node makes, cancel, previews, packs that come and go. */

import { createHash } from "node:crypto";
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { readsPicture } from "../src/core/task.js";
import { QuadPipeline, type RgbaPicture } from "../src/index.js";
import { samplerText } from "../src/samplers/names.js";
import { writePage } from "../tools/page.mjs";
import { type FolderServer, serveFolders } from "./browser/folders.js";
import { bundlePath, packPath } from "./reference.js";
import { isThere, launch } from "./studio/browser.js";

const PAGE = fileURLToPath(new URL("../../src/quad/serve/studio/page", import.meta.url));
const HEADERS = {
  "Content-Security-Policy":
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; img-src blob:",
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};
const SIDE = 24;
const RED = Uint8Array.from({ length: 4 * SIDE * SIDE }, (_, i) => (i % 4 === 3 ? 255 : (i * 37) % 256));
const MASK = Uint8Array.from({ length: 4 * SIDE * SIDE }, (_, i) => (i % 4 === 3 || (i >> 2) % SIDE < 9 ? 255 : 0));
const digest = (data: Uint8Array | Uint8ClampedArray): string => createHash("sha256").update(data).digest("hex");

describe.skipIf(bundlePath === undefined || !isThere)("the page's own backend", () => {
  const folder = mkdtempSync(join(tmpdir(), "quad-device-"));
  let [server, browser, page, pipe] = [] as unknown as [FolderServer, Browser, Page, QuadPipeline];
  const foreign: string[] = [];

  beforeAll(async () => {
    await writePage(join(folder, "device"));
    writeFileSync(join(folder, "index.html"), '<!doctype html><script type="module" src="device_page.js"></script>');
    copyFileSync(fileURLToPath(new URL("browser/device_page.js", import.meta.url)), join(folder, "device_page.js"));
    const places = { "": { path: PAGE }, device: { path: join(folder, "device") }, bundle: { path: bundlePath!, token: "secret" } };
    server = await serveFolders({ ...places, walk: { path: folder } }, HEADERS);
    browser = await launch();
    page = await browser.newPage();
    page.on("request", (request) => {
      if (!request.url().startsWith(server.address) && !request.url().startsWith("blob:")) foreign.push(request.url());
    });
    await page.goto(`${server.address}walk/index.html`);
    pipe = await QuadPipeline.open(bundlePath!, { threads: 1 });
    await inPage("open", "secret");
  });

  afterAll(async () => {
    await browser?.close();
    server?.close();
    rmSync(folder, { recursive: true, force: true });
  });

  /** What a function of `device_page.js` answers. */
  function inPage<T>(name: string, given: unknown = null): Promise<T> {
    return page.evaluate(([own, argument]) => (globalThis as unknown as Record<string, (it: unknown) => T>)[own as string]!(argument), [
      name,
      given,
    ] as const);
  }

  /** The digest of a picture that the page makes. */
  async function picture(task: string): Promise<string> {
    const spec = pipe.tasks.get(task)!;
    const image = readsPicture(spec) ? [...RED] : null;
    const mask = spec.mask === "input" && image ? [...MASK] : null;
    return inPage("run", { task, image, mask, side: SIDE });
  }

  async function inNode(task: string): Promise<string> {
    const spec = pipe.tasks.get(task)!;
    const given = readsPicture(spec) ? { image: { data: RED, width: SIDE, height: SIDE } } : {};
    const mask = "image" in given && spec.mask === "input" ? { mask_image: { data: MASK, width: SIDE, height: SIDE } } : {};
    const { images } = await pipe.run("the car", { task, seed: 3, num_inference_steps: 2, ...given, ...mask });
    return digest((images[0] as RgbaPicture).data);
  }

  test("tells of the bundle what the pipeline knows", async () => {
    const card = await inPage<Card>("card");
    expect(card.name).toBe(pipe.manifest.name);
    expect(card.tasks.map(({ name, sampler }) => [name, sampler])).toEqual(
      [...pipe.tasks].map(([name, spec]) => [name, samplerText(spec.sampler)]),
    );
    expect(card.adapters.map(({ name, source }) => [name, source])).toEqual(pipe.adapters.map((name) => [name, "bundle"]));
    for (const { values, names } of card.heatMaps) {
      expect(names).toEqual(pipe.adapters);
      for (const [row, cells] of values.entries()) expect(cells[row]).toBe(0);
    }
  });

  test("makes the pictures that the runtime makes elsewhere, there and back", async () => {
    const tasks = [...pipe.tasks.keys()];
    for (const task of [...tasks, tasks[0]!]) expect(await picture(task), task).toBe(await inNode(task));
  });

  test("shows its way, and stops when told", async () => {
    const { steps, previews, error } = await inPage<Watched>("watched", [...pipe.tasks.keys()][0]);
    expect(steps).toEqual([[1, 3], [2, 3], [3, 3]]); // biome-ignore format: pairs
    expect(previews).toBe(pipe.manifest.preview === undefined ? 0 : 3);
    expect(error).toBe("AbortError");
  });

  test("says in one line what it refuses", async () => {
    expect(await inPage("refusedTask")).toMatch(/^UsageError task: expected one of .*, found .?none/);
    expect(await inPage("refusedLora")).toMatch(/quad adapt$/);
    expect(await inPage("refusedToken")).toMatch(/^BackendError .*status 401/);
  });

  test.skipIf(packPath === undefined)("installs packs, keeps them for the next visit, and rolls back", async () => {
    const bytes = packPath === undefined ? [] : [...readFileSync(packPath)];
    const [first] = pipe.adapters;
    expect(await inPage<unknown[][]>("install", { bytes, name: "mine" })).toEqual([
      ...pipe.adapters.map((name) => [name, "bundle", false]),
      ["mine", "installed", false],
    ]);
    expect((await inPage<unknown[][]>("install", { bytes, name: "mine" })).at(-1)).toEqual(["mine", "installed", true]);
    expect(await inPage<unknown[][]>("install", { bytes, name: first! })).toContainEqual([first, "installed", false]);
    await page.reload();
    await inPage("open", "secret");
    expect((await inPage<unknown[][]>("rollback", "mine")).at(-1)).toEqual(["mine", "installed", false]);
    expect(await inPage<unknown[][]>("rollback", "mine")).toHaveLength(pipe.adapters.length);
    expect(await inPage<unknown[][]>("rollback", first!)).toEqual(pipe.adapters.map((name) => [name, "bundle", false]));
  });

  test("asks nobody but its own server", () => {
    expect(foreign).toEqual([]);
  });
});

interface Card {
  readonly name: string;
  readonly tasks: readonly { readonly name: string; readonly sampler: string }[];
  readonly adapters: readonly { readonly name: string; readonly source: string }[];
  readonly heatMaps: readonly { readonly names: readonly string[]; readonly values: readonly (readonly number[])[] }[];
}

interface Watched {
  readonly steps: readonly (readonly number[])[];
  readonly previews: number;
  readonly error: string;
}
