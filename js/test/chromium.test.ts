/** The runtime in a real Chromium, of the system's package manager: page, worker, cache, offline. Skipped without it or a bundle. */

import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { serveSite } from "./browser/server.js";
import { bundlePath } from "./reference.js";

const CHROMIUM = process.env.CHROMIUM ?? "chromium";
const FLAGS = [
  "--headless=new",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-dev-shm-usage",
  "--no-first-run",
  "--disable-background-networking",
];
const isThere = bundlePath !== undefined && spawnSync(CHROMIUM, ["--version"]).status === 0;

describe.skipIf(!isThere)("in Chromium", () => {
  test.each([false, true])("isolated %s: pictures, worker, offline, and its own origin alone", async (isolated) => {
    const site = await serveSite(bundlePath!, isolated);
    const profile = mkdtempSync(join(tmpdir(), "quad-chromium-"));
    const browser = spawn(CHROMIUM, [...FLAGS, `--user-data-dir=${profile}`, site.address], { stdio: "ignore", detached: true });
    try {
      const { open_ms, threads, notes, ...answer } = await site.answer;
      expect(answer).toEqual({
        isolated,
        switchesBack: true,
        failed: [],
        inWorker: true,
        offline: true,
        originFiles: ["1,2,3", null],
      });
      expect(open_ms).toBeGreaterThan(0);
      expect(notes).toHaveLength(isolated ? 0 : 1);
      if (!isolated) expect(threads).toBe(1);
    } finally {
      const gone = new Promise((closed) => browser.once("close", closed));
      process.kill(-browser.pid!, "SIGKILL"); // with its children, which write into the profile for a while yet
      await gone;
      site.close();
      rmSync(profile, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 });
    }
  });
});
