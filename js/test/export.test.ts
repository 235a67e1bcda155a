/**
 * An exported page (`QUAD_TEST_EXPORT`) on a plain file server, as two phones see it: all tasks, threads by its service worker, offline
 * again, its own origin alone, and refused where one byte is another.
 */

import { type ChildProcess, spawn } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import type { AddressInfo } from "node:net";
import { createServer } from "node:net";
import { fileURLToPath } from "node:url";
import type { Browser, BrowserContext, BrowserContextOptions, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { isThere, launch, make } from "./studio/browser.js";

const folder = process.env.QUAD_TEST_EXPORT;
const WALK = readFileSync(fileURLToPath(new URL("browser/export_walk.js", import.meta.url)), "utf8");
const PHONES = { small: { width: 360, height: 640 }, large: { width: 412, height: 915 } };

interface Walked {
  readonly server: boolean;
  readonly tasks: readonly string[];
  readonly threads: string;
  readonly pictures: readonly string[];
}

describe.skipIf(folder === undefined || !isThere)("an exported page", () => {
  let [browser, host, address] = [] as unknown as [Browser, ChildProcess, string];
  let pictures: readonly string[] | undefined;

  beforeAll(async () => {
    const port = await freePort();
    address = `http://localhost:${port}/`;
    host = await serving(port);
    browser = await launch();
  });

  afterAll(async () => {
    await browser?.close();
    host?.kill();
  });

  test.each(Object.entries(PHONES))("on a %s phone: all tasks, with threads, and offline again", async (size, viewport) => {
    const { page, context, foreign, errors } = await visit({ viewport, isMobile: true, hasTouch: true, deviceScaleFactor: 2 });
    await page.waitForFunction(() => crossOriginIsolated && navigator.serviceWorker.controller !== null);
    await ready(page);
    expect(await page.textContent("#where")).toContain("on this device");
    await page.fill("#prompt", "the car");
    await make(page);
    const walked = await walk(page);
    expect(walked.server).toBe(false);
    expect(walked.threads).toMatch(/^\d+$/);
    expect(walked.pictures.at(-1)).toBe(walked.pictures[0]);
    expect(new Set(walked.pictures).size).toBe(walked.tasks.length);
    pictures ??= walked.pictures;
    expect(walked.pictures).toEqual(pictures);
    expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBeLessThanOrEqual(viewport.width);
    if (process.env.QUAD_TEST_SHOTS) await page.screenshot({ path: `${process.env.QUAD_TEST_SHOTS}/${size}.png`, fullPage: true });

    const gone = new Promise((exit) => host.once("exit", exit));
    host.kill();
    await gone;
    await page.reload();
    await ready(page);
    await make(page);
    expect((await walk(page)).pictures).toEqual(walked.pictures);
    host = await serving(Number(new URL(address).port));
    expect(foreign).toEqual([]);
    expect(errors).toEqual([]);
    await context.close();
  });

  test("without a service worker it has one thread, and says so", async () => {
    const { page, context } = await visit({ serviceWorkers: "block" });
    await ready(page);
    const walked = await walk(page);
    expect(walked.threads).toMatch(/^1, since the page is not cross-origin isolated/);
    expect(walked.pictures).toEqual(pictures);
    await context.close();
  });

  test.each(["allow", "block"] as const)("one other byte is refused, service workers: %s", async (serviceWorkers) => {
    const file = `${folder}/backend.js`;
    const content = readFileSync(file, "utf8");
    writeFileSync(file, `${content} `);
    try {
      const { page, context } = await visit({ serviceWorkers });
      await expect
        .poll(() => page.textContent("[role=alert]"), { timeout: 20_000 })
        .toMatch(/expected the files? that w.* exported, found/);
      await context.close();
    } finally {
      writeFileSync(file, content);
    }
  });

  interface Visit {
    readonly page: Page;
    readonly context: BrowserContext;
    readonly foreign: string[];
    readonly errors: string[];
  }

  async function visit(options: BrowserContextOptions): Promise<Visit> {
    const context = await browser.newContext(options);
    const page = await context.newPage();
    const [foreign, errors] = [[] as string[], [] as string[]];
    context.on("request", (request) => {
      if (!request.url().startsWith(address) && !request.url().startsWith("blob:")) foreign.push(request.url());
    });
    page.on("pageerror", (error) => errors.push(error.message));
    await page.goto(address);
    return { page, context, foreign, errors };
  }

  async function ready(page: Page): Promise<void> {
    await page.waitForSelector("#studio:not([hidden])");
  }

  async function walk(page: Page): Promise<Walked> {
    await page.evaluate(WALK);
    return page.evaluate("walk()");
  }

  async function serving(port: number): Promise<ChildProcess> {
    const python = spawn("python3", ["-m", "http.server", String(port), "--bind", "127.0.0.1", "--directory", folder!], {
      stdio: "ignore",
    });
    const answers = (): Promise<boolean> => fetch(address).then((response) => response.ok, () => false); // biome-ignore format: one line
    while (!(await answers())) await new Promise((go) => setTimeout(go, 50));
    return python;
  }
});

async function freePort(): Promise<number> {
  const probe = createServer();
  await new Promise<void>((listening) => probe.listen(0, "127.0.0.1", listening));
  const { port } = probe.address() as AddressInfo;
  await new Promise((closed) => probe.close(closed));
  return port;
}
