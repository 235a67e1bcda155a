/** `quad studio` (`QUAD_STUDIO`): its server's picture, and after the switch the device's own from the same seed. */

import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { closeStudio, isThere, launch, make, openStudio } from "./studio/browser.js";

const ADDRESS = process.env.QUAD_STUDIO;
const LEAST_DB = 45;

describe.skipIf(ADDRESS === undefined || !isThere)("run on this device", () => {
  let browser: Browser;
  beforeAll(async () => {
    browser = await launch();
  });
  afterAll(() => browser?.close());

  test("makes the server's picture, under the server's own policy", async () => {
    const studio = await openStudio(browser, ADDRESS!);
    const byServer = await picture(studio.page);
    await studio.page.check("#device");
    await studio.page.waitForFunction(() => document.querySelector("#where")!.textContent!.includes("on this device"));
    const byDevice = await picture(studio.page);
    expect(byDevice).toHaveLength(byServer.length);
    const squares = byServer.reduce((sum, level, i) => sum + (level - byDevice[i]!) ** 2, 0);
    expect(10 * Math.log10((255 ** 2 * byServer.length) / squares)).toBeGreaterThanOrEqual(LEAST_DB);
    await closeStudio(studio);
  });
});

/** The levels of the picture that seed 7 gives. */
async function picture(page: Page): Promise<number[]> {
  await page.evaluate(() => document.querySelector<HTMLDetailsElement>("#more")!.setAttribute("open", ""));
  await page.fill("#prompt", "the car");
  await page.fill("#seed", "7");
  if ((await page.getAttribute("#lock", "aria-pressed")) === "false") await page.click("#lock");
  await make(page);
  return page.evaluate(async () => {
    const shown = await createImageBitmap(document.querySelector<HTMLImageElement>("#result")!);
    const context = new OffscreenCanvas(shown.width, shown.height).getContext("2d")!;
    context.drawImage(shown, 0, 0);
    return [...context.getImageData(0, 0, shown.width, shown.height).data];
  });
}
