// The half of `benchmarks/javascript.py --chromium` that drives Chromium: first pictures, switches, pictures beside native ones, calls.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "../js/node_modules/esbuild/lib/main.js";
import { chromium } from "../js/node_modules/playwright-core/index.mjs";
import { writePage } from "../js/tools/page.mjs";
import { serveFolders } from "./javascript_folders.mjs";

const [bundle, native] = process.argv.slice(2);
const FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync";
const ISOLATED = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };
const folder = mkdtempSync(join(tmpdir(), "quad-chromium-"));
const rounded = (values) => JSON.parse(JSON.stringify(values, (_, value) => (typeof value === "number" ? Number(value.toFixed(2)) : value)));

async function measured(browser, headers) {
  const server = await serveFolders({ "": folder, device: join(folder, "device"), bundle, native }, headers);
  const page = await (await browser.newContext()).newPage();
  try {
    const visits = [];
    for (const visit of ["cold", "again"]) {
      await page.goto(server.address);
      visits.push([visit, await page.evaluate("visit()")]);
    }
    await page.goto(server.address);
    const pictures = await page.evaluate("pictures()");
    await page.evaluate("prepare()");
    const session = await page.context().newCDPSession(page);
    await session.send("Performance.enable");
    const seconds = async () => (await session.send("Performance.getMetrics")).metrics.find(({ name }) => name === "ProcessTime").value;
    const before = await seconds();
    const calls = await page.evaluate("calls()");
    const cpu_ms = ((await seconds()) - before) * 1e3 / calls.calls;
    return { ...Object.fromEntries(visits), ...pictures, unet: { cpu_ms, ...calls } };
  } finally {
    await page.context().close();
    server.close();
  }
}

try {
  await writePage(join(folder, "device"));
  await build({
    entryPoints: [fileURLToPath(new URL("javascript_page.mjs", import.meta.url))],
    outfile: join(folder, "page.js"),
    bundle: true,
    format: "esm",
    platform: "browser",
    target: "es2022",
    conditions: ["onnxruntime-web-use-extern-wasm"],
    nodePaths: [fileURLToPath(new URL("../js/node_modules", import.meta.url))],
    logLevel: "error",
  });
  writeFileSync(join(folder, "index.html"), '<!doctype html><script type="module" src="/page.js"></script>');
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: FLAGS.split(" ") });
  const version = browser.version();
  const one = await measured(browser, {});
  const threads = await measured(browser, ISOLATED);
  await browser.close();
  process.stdout.write(JSON.stringify(rounded({ version, one, threads })));
} finally {
  rmSync(folder, { recursive: true, force: true });
}
