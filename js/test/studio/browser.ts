/** A Chromium of the system's own package manager, and pages of the studio in it. */

import { spawnSync } from "node:child_process";
import { createRequire } from "node:module";
import { type Browser, type BrowserContextOptions, chromium, type Page } from "playwright-core";
import { expect } from "vitest";

export const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
export const isThere = spawnSync(CHROMIUM, ["--version"]).status === 0;
const FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-dev-shm-usage",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--use-fake-device-for-media-stream",
  "--use-fake-ui-for-media-stream",
];
const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");

export const launch = (): Promise<Browser> => chromium.launch({ executablePath: CHROMIUM, args: FLAGS });

export interface Studio {
  page: Page;
  /** What the browser has complained of: errors, and what the page's policy has kept it from. */
  complaints: string[];
  /** Addresses of other origins that were asked for. */
  foreign: string[];
}

export async function openStudio(browser: Browser, address: string, options: BrowserContextOptions = {}): Promise<Studio> {
  const context = await browser.newContext({ viewport: { width: 1200, height: 900 }, reducedMotion: "reduce", ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
  const studio: Studio = { page, complaints: [], foreign: [] };
  const { origin } = new URL(address);
  page.on("console", (message) => message.type() === "error" && studio.complaints.push(message.text()));
  page.on("pageerror", (error) => studio.complaints.push(error.message));
  page.on("request", (request) => {
    if (new URL(request.url()).origin !== origin && !request.url().startsWith("blob:")) studio.foreign.push(request.url());
  });
  await page.goto(address);
  await page.waitForSelector("#studio:not([hidden])");
  return studio;
}

/** Closes the page; the whole walk asked nobody else, and the browser has nothing to complain of. */
export async function closeStudio({ page, complaints, foreign }: Studio): Promise<void> {
  expect(foreign).toEqual([]);
  expect(complaints).toEqual([]);
  await page.context().close();
}

/** What axe-core finds that is serious or critical. */
export async function seriousFindings(page: Page): Promise<string[]> {
  await page.evaluate(await readFile(AXE));
  return page.evaluate(async () => {
    const { axe } = globalThis as unknown as { axe: { run(): Promise<{ violations: Finding[] }> } };
    interface Finding {
      id: string;
      impact: string;
      nodes: { html: string; failureSummary: string }[];
    }
    const { violations } = await axe.run();
    return violations
      .filter(({ impact }) => impact === "serious" || impact === "critical")
      .map(({ id, nodes }) => `${id}: ${nodes.map((node) => `${node.html} ${node.failureSummary}`).join("; ")}`);
  });
}

async function readFile(path: string): Promise<string> {
  const { readFile } = await import("node:fs/promises");
  return readFile(path, "utf8");
}

/** Ask for the picture that the page describes, and wait until it is there. */
export async function make(page: Page): Promise<void> {
  const before = await page.locator("#entries li").count();
  await page.click("#make");
  await page.waitForFunction((count) => document.querySelectorAll("#entries li").length > count, before);
  await page.waitForSelector("#make:not([hidden])");
}

/** A stroke over a part of the canvas, from and to shares of its width and height. */
export async function stroke(page: Page, ...points: [number, number][]): Promise<void> {
  const canvas = page.locator("#canvas-frame canvas");
  await canvas.scrollIntoViewIfNeeded();
  const box = (await canvas.boundingBox())!;
  const [first, ...rest] = points.map(([x, y]) => [box.x + x * box.width, box.y + y * box.height] as const);
  await page.mouse.move(...first!);
  await page.mouse.down();
  for (const point of rest) await page.mouse.move(...point, { steps: 3 });
  await page.mouse.up();
}

/** Pixels of the canvas that are not as they were, counted by a mark of every pixel. */
export function canvasPixels(page: Page): Promise<number[]> {
  return page.evaluate(() => {
    const canvas = document.querySelector<HTMLCanvasElement>("#canvas-frame canvas")!;
    return Array.from(canvas.getContext("2d")!.getImageData(0, 0, canvas.width, canvas.height).data);
  });
}
