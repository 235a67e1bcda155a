/** The system's Chromium, driven by Playwright: no browser is downloaded, and none is asked for updates. */

import { spawnSync } from "node:child_process";
import { type Browser, chromium } from "playwright-core";

const PLACES = [process.env.CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--disable-dev-shm-usage",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

/** Where Chromium is; undefined where there is none. */
export const chromiumPath = PLACES.find((place) => place !== undefined && spawnSync(place, ["--version"]).status === 0);

export function launchChromium(): Promise<Browser> {
  return chromium.launch({ executablePath: chromiumPath!, args: FLAGS, headless: true });
}
