/** The page walked as people use it, by pointer, keyboard and touch, over a small bundle. Skipped without Chromium or a server. */

import { readFileSync } from "node:fs";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { closeStudio, isThere, launch, make, openStudio, type Studio, seriousFindings, stroke } from "./browser.js";

const ADDRESS = process.env.QUAD_STUDIO;
const PICTURE = process.env.QUAD_STUDIO_PICTURE ?? "";
const PACKS = (process.env.QUAD_STUDIO_PACKS ?? "").split(":");

const live = (page: Page, text: RegExp | string) =>
  page.waitForFunction(
    ([source]) => new RegExp(source!).test(document.querySelector("#live")!.textContent ?? ""),
    [typeof text === "string" ? text : text.source],
  );
const openPicture = async (page: Page) => {
  await page.setInputFiles("#file", PICTURE);
  await page.waitForSelector("#editor:not([hidden])");
};

describe.skipIf(ADDRESS === undefined || !isThere)("the studio", () => {
  let browser: Browser;
  beforeAll(async () => {
    browser = await launch();
  });
  afterAll(() => browser?.close());

  const walk = (name: string, steps: (page: Page, studio: Studio) => Promise<void>, options = {}) =>
    test(name, async () => {
      const studio = await openStudio(browser, ADDRESS!, options);
      await steps(studio.page, studio);
      await closeStudio(studio);
    });

  walk("words become a picture, the token leaves the address, and a reload knows it still", async (page) => {
    expect(page.url()).not.toContain("token");
    await page.fill("#prompt", "the car");
    await make(page);
    expect(await page.locator("#facts").textContent()).toMatch(/seed \d+euler, 3 stepsguidance 1no adapter/);
    expect(await page.locator("#result").evaluate((image: HTMLImageElement) => image.naturalWidth)).toBe(16);
    await page.click("text=Times and memory");
    expect(await page.locator("#timings").textContent()).toMatch(/unet.*total.*memory/);
    await page.reload();
    await page.waitForSelector("#studio:not([hidden])");
    expect(await page.locator("#entries li").count()).toBe(0);
  });

  walk("a tab without the token says where to get one", async (page, studio) => {
    await page.evaluate(() => sessionStorage.clear());
    await page.reload();
    await page.waitForSelector("#message:not([hidden])");
    expect(await page.locator("#message").textContent()).toContain("Open the address that quad studio printed");
    studio.complaints.length = 0; // the browser tells of the 401
  });

  walk("a picture that is dropped is transformed, one that is pasted takes its place", async (page) => {
    await page.click("#tab-transform");
    const data = readFileSync(PICTURE).toString("base64");
    const bring = (kind: "drop" | "paste") =>
      page.evaluate(
        ([type, text]) => {
          const bytes = Uint8Array.from(atob(text!), (letter) => letter.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], "x.png", { type: "image/png" }));
          const init = { bubbles: true, cancelable: true };
          const event =
            type === "drop"
              ? new DragEvent("drop", { ...init, dataTransfer: transfer })
              : new ClipboardEvent("paste", { ...init, clipboardData: transfer });
          document.querySelector("#prompt")!.dispatchEvent(event);
        },
        [kind, data],
      );
    await page.click("#make");
    await page.waitForSelector("#message:not([hidden])"); // it reads a picture, and there is none
    await bring("drop");
    await live(page, "Picture opened, 24 by 16");
    await make(page);
    await page.evaluate(() => (document.querySelector("#live")!.textContent = ""));
    await bring("paste");
    await live(page, "Picture opened");
    await make(page);
    expect(await page.locator("#facts").textContent()).toContain("transform 1");
  });

  walk("a mask is painted, erased, undone and cleared; the picture outside of it stays", async (page) => {
    await page.click("#tab-removal");
    await openPicture(page);
    await page.click("#make");
    await page.waitForSelector("#message:not([hidden])"); // nothing is painted
    await page.fill("#brush-size", "60");
    await stroke(page, [0.5, 0.3], [0.5, 0.7]);
    await page.click("#eraser");
    await stroke(page, [0.5, 0.3], [0.5, 0.7]);
    const strokes = () => page.locator("#undo").getAttribute("aria-disabled");
    expect(await strokes()).toBe("false");
    await page.click("#undo");
    await page.click("#clear");
    await page.click("#undo");
    await page.click("#brush");
    await make(page);
    const same = await page.locator("#result").evaluate((image: HTMLImageElement) => {
      const context = new OffscreenCanvas(image.naturalWidth, image.naturalHeight).getContext("2d")!;
      context.drawImage(image, 0, 0);
      return { width: image.naturalWidth, height: image.naturalHeight, corner: [...context.getImageData(0, 0, 1, 1).data] };
    });
    expect([same.width, same.height]).toEqual([24, 16]);
    expect(same.corner).toEqual([10, 200, 30, 255]);
    // Another picture, and back: with the first one, its mask comes back.
    await page.click("#clear");
    await stroke(page, [0.9, 0.9], [0.8, 0.9]);
    await make(page);
    await page.click("#entries li:last-child button");
    await live(page, "Its settings are back");
    await make(page);
    const sources = await page.locator("#entries img").evaluateAll(async (images) => {
      const marks = [];
      for (const image of images as HTMLImageElement[]) {
        const context = new OffscreenCanvas(24, 16).getContext("2d")!;
        context.drawImage(image, 0, 0);
        marks.push(context.getImageData(0, 0, 24, 16).data.join());
      }
      return marks;
    });
    expect(sources[0]).toBe(sources[2]);
    expect(sources[0]).not.toBe(sources[1]);
  });

  walk("by keys alone: tabs, a mask, the picture", async (page) => {
    await page.focus("#tab-text-to-image");
    await page.keyboard.press("End");
    await page.keyboard.press("ArrowLeft");
    const chosen = () => page.locator('[role="tab"][aria-selected="true"]').textContent();
    const last = await chosen();
    await page.keyboard.press("ArrowRight");
    expect(await chosen()).not.toBe(last);
    await page.click("#tab-removal");
    await openPicture(page);
    await page.focus("#canvas-frame canvas");
    for (const key of [" ", "ArrowRight", "ArrowDown", " ", "Shift+ArrowLeft"]) await page.keyboard.press(key);
    expect(await page.locator("#undo").getAttribute("aria-disabled")).toBe("false");
    await page.focus("#prompt");
    await page.keyboard.press("Control+Enter");
    await live(page, "The picture is done");
  });

  walk("a sketch is drawn on the page", async (page) => {
    await page.click("#tab-sketch");
    await stroke(page, [0.2, 0.8], [0.5, 0.2], [0.8, 0.8]);
    await make(page);
    await page.click("#clear");
    await make(page);
    const [blank, drawn] = await page
      .locator("#entries img")
      .evaluateAll((images) => images.map((image) => (image as HTMLImageElement).src));
    expect(blank).not.toBe(drawn);
  });

  walk(
    "the camera's picture is taken",
    async (page) => {
      await page.click("#tab-transform");
      await page.click("#open-camera");
      await page.waitForFunction(() => document.querySelector<HTMLVideoElement>("#video")!.videoWidth > 0);
      await page.click("#shoot");
      await live(page, "Picture opened");
      await make(page);
      await page.click("#open-camera");
      await page.waitForSelector("#camera-dialog[open]");
      await page.keyboard.press("Escape");
      await page.waitForSelector("#camera-dialog:not([open])", { state: "attached" });
    },
    { permissions: ["camera"] },
  );

  walk("adapters are chips with a strength, and the history brings back what made a picture", async (page) => {
    await page.click('#chips [data-name="sketch"]');
    await page.click('#chips [data-name="transform"]');
    await page.fill("#weight-sketch", "0.5");
    await page.click("#more summary");
    await page.selectOption("#sampler", "ddim");
    await page.fill("#steps", "2");
    await page.fill("#guidance", "1.5");
    await page.fill("#seed", "7");
    expect(await page.locator("#lock").getAttribute("aria-pressed")).toBe("true");
    await page.fill("#prompt", "car");
    await page.fill("#negative", "night");
    await make(page);
    expect(await page.locator("#facts").textContent()).toBe(
      `seed 7ddim, 2 stepsguidance 1.5sketch 0.5 + transform 1${(await page.locator("#facts span").last().textContent()) ?? ""}`,
    );
    await page.click("#lock");
    await page.click('#chips [data-name="transform"]');
    await page.fill("#prompt", "the night");
    await make(page);
    expect(await page.locator("#seed").inputValue()).not.toBe("7");
    await page.click("#entries li:last-child button");
    expect(await page.locator("#prompt").inputValue()).toBe("car");
    expect([
      await page.locator("#seed").inputValue(),
      await page.locator("#steps").inputValue(),
      await page.locator("#sampler").inputValue(),
    ]).toEqual(["7", "2", "ddim"]);
    expect(await page.locator("#weight-sketch").inputValue()).toBe("0.5");
    const saving = page.waitForEvent("download");
    await page.click("#save");
    const saved = await (await saving).path();
    const text = readFileSync(saved).toString("latin1");
    expect(text).toContain("quad:request");
    expect(text).toContain("parameters\0car<lora:sketch:0.5>");
    await page.click("#defaults");
    await page.click("#tab-transform");
    await page.setInputFiles("#file", { name: "saved.png", mimeType: "image/png", buffer: readFileSync(saved) });
    await page.click("text=Use the settings in this picture's file");
    expect(await page.locator("#seed").inputValue()).toBe("7");
  });

  walk("a run is cancelled, and the next one begins", async (page) => {
    const call = (method: string, path: string, body?: object) =>
      page.evaluate(
        async ([method, path, body]) => {
          const token = sessionStorage.getItem("quad-studio-token");
          const headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/json" };
          const response = await fetch(path!, { method: method!, headers, body: body ?? null });
          return response.status === 204 ? null : response.json();
        },
        [method, path, body && JSON.stringify(body)] as const,
      );
    // Others are before it, so that it is not done before it is cancelled.
    const others = [];
    for (let i = 0; i < 4; i++) others.push(await call("POST", "v1/requests", { prompt: "car", num_inference_steps: 1000, priority: 1 }));
    await page.click("#more summary");
    await page.fill("#steps", "1000");
    await page.click("#make");
    await page.click("#cancel");
    await live(page, "Cancelled");
    expect(await page.locator("#entries li").count()).toBe(0);
    for (const { id } of others) await call("DELETE", `v1/requests/${id}`);
    await page.fill("#steps", "1");
    await make(page);
  });

  walk("two pictures under one divider: another seed, no adapter, one of before", async (page) => {
    await page.click("#tab-sketch");
    await stroke(page, [0.2, 0.8], [0.8, 0.2]);
    await make(page);
    for (const [option, right] of [
      ["another seed", /^seed \d+$/],
      ["no adapter", /no adapter/],
    ] as const) {
      await page.selectOption("#beside", { label: option });
      await page.waitForSelector("#compare:not([hidden]) .tag.right");
      expect(await page.locator("#compare .tag.right").textContent()).toMatch(right);
    }
    await page.focus("#compare input");
    for (let press = 0; press < 10; press++) await page.keyboard.press("ArrowRight");
    expect(await page.locator("#compare").evaluate((node) => (node as HTMLElement).style.getPropertyValue("--split"))).toBe("55%");
    await page.selectOption("#beside", "");
    expect(await page.locator("#compare").isHidden()).toBe(true);
  });

  walk("previews come while it is made", async (page) => {
    await page.click("#more summary");
    await page.fill("#steps", "1000");
    const width = page.evaluate(
      () =>
        new Promise<number>((seen) => {
          const canvas = document.querySelector<HTMLCanvasElement>("#preview")!;
          new MutationObserver(() => canvas.hidden || seen(canvas.width)).observe(canvas, { attributes: true });
        }),
    );
    await page.click("#make");
    expect(await width).toBe(4);
    await page.waitForSelector("#make:not([hidden])");
  });

  walk("a pack is installed, used, replaced, rolled back and removed; what is none is refused", async (page, studio) => {
    await page.click("#open-adapters");
    const install = async (path: string | { name: string; mimeType: string; buffer: Buffer }) => {
      await page.setInputFiles("#install-file", path);
      await page.fill("#install-name", "ink");
      await page.click("#install button[type=submit]");
    };
    const says = (text: string) => page.waitForFunction((part) => document.querySelector("#verdict")!.textContent!.includes(part), text);
    await install({ name: "ink.qpack", mimeType: "application/octet-stream", buffer: Buffer.from("nothing") });
    await says("safetensors");
    studio.complaints.length = 0; // the browser tells of the refusal
    await install(PACKS[0]!);
    await says("ink is installed");
    await page.click('button[aria-label="Remove ink"] >> nth=0', { trial: true });
    await install(PACKS[1]!);
    await page.click('button[aria-label="Roll back ink"]');
    await says("the version before runs again");
    await page.keyboard.press("Escape");
    await page.click('#chips [data-name="ink"]');
    expect(await page.locator("#weights .headroom").textContent()).toMatch(/any weight|headroom/);
    await make(page);
    expect(await page.locator("#facts").textContent()).toContain("ink 1");
    await page.evaluate(() =>
      fetch("v1/adapters/ink", { method: "DELETE", headers: { Authorization: `Bearer ${sessionStorage.getItem("quad-studio-token")}` } }),
    );
  });

  walk("the card tells the bundle, with a table of adapters that nobody needs colours for", async (page) => {
    await page.click("#open-card");
    expect(await page.locator("#card").textContent()).toMatch(/phone.*w8a16.*ort/);
    expect(await page.locator(".heat td").count()).toBeGreaterThanOrEqual(9);
    const saving = page.waitForEvent("download");
    await page.click("text=Save the report");
    expect(readFileSync(await (await saving).path(), "utf8")).toContain("<style>");
  });

  for (const colorScheme of ["light", "dark"] as const) {
    walk(
      `axe-core has nothing serious to say, ${colorScheme}`,
      async (page) => {
        await page.click("#tab-removal");
        await openPicture(page);
        await page.click("#more summary");
        await stroke(page, [0.5, 0.3], [0.5, 0.7]);
        await make(page);
        await page.selectOption("#beside", { label: "no adapter" });
        await page.waitForSelector("#compare:not([hidden])");
        expect(await seriousFindings(page)).toEqual([]);
        for (const name of ["card", "adapters"]) {
          await page.click(`#open-${name}`);
          expect(await seriousFindings(page)).toEqual([]);
          await page.keyboard.press("Escape");
        }
      },
      { colorScheme },
    );
  }

  walk("the checks see what they are for: a field without a name, a call to another origin, an inline style", async (page, studio) => {
    await page.evaluate(async () => {
      document.querySelector('label[for="prompt"]')!.remove();
      document.querySelector("#prompt")!.setAttribute("style", "color: red");
      await fetch("http://127.0.0.2:9/").catch(() => {});
    });
    expect((await seriousFindings(page)).map((line) => line.split(":")[0])).toContain("label");
    for (const kind of ["style-src", "connect-src"]) expect(studio.complaints.join()).toContain(kind);
    expect(await page.locator("#prompt").evaluate((node) => getComputedStyle(node).color)).not.toBe("rgb(255, 0, 0)");
    studio.complaints.length = studio.foreign.length = 0;
  });

  for (const width of [360, 412]) {
    walk(
      `on a phone, ${width} px wide, nothing is cut off and touch paints`,
      async (page) => {
        const fits = async () => expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBe(width);
        await fits();
        await page.tap("#tab-sketch");
        await stroke(page, [0.2, 0.8], [0.8, 0.2]);
        await fits();
        await page.tap("#make");
        await live(page, "The picture is done");
        await fits();
        for (const name of ["card", "adapters"]) {
          await page.tap(`#open-${name}`);
          const box = (await page.locator(`#${name}-dialog`).boundingBox())!;
          expect(box.x).toBeGreaterThanOrEqual(0);
          expect(box.x + box.width).toBeLessThanOrEqual(width);
          await page.tap(`#${name}-dialog .close`);
        }
        expect(await seriousFindings(page)).toEqual([]);
      },
      { viewport: { width, height: 740 }, isMobile: true, hasTouch: true },
    );
  }
});
