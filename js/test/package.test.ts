/** The package as a page loads it: small, whole, and asking nobody. */

import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { expect, test } from "vitest";
import { writePage } from "../tools/page.mjs";

const MOST_BYTES = 120_000;

test.each(["index", "worker"])("%s without the engine is at most 120 kB, compressed", async (entry) => {
  const { outputFiles, warnings } = await build({
    entryPoints: [fileURLToPath(new URL(`../src/${entry}.ts`, import.meta.url))],
    bundle: true,
    minify: true,
    format: "esm",
    platform: "browser",
    target: "es2022",
    external: ["onnxruntime-web", "onnxruntime-web/*"],
    write: false,
  });
  const [code] = outputFiles;
  expect(warnings).toEqual([]);
  expect(gzipSync(code!.contents, { level: 9 }).length).toBeLessThanOrEqual(MOST_BYTES);
  // The one address is of a name that no network has, as Cache storage wants.
  expect(new Set(code!.text.match(/https?:\/\/[^/"'`\s]+/g))).toEqual(new Set(["https://quad.invalid"]));
});

test("what a page loads besides the engine is at most 120 kB, compressed, whatever lay there before", async () => {
  const folder = mkdtempSync(join(tmpdir(), "quad-page-"));
  try {
    await writePage(folder);
    const files = readdirSync(folder);
    const code = files.filter((file) => file.endsWith(".js")).map((file) => readFileSync(join(folder, file)));
    expect(code.map((content) => gzipSync(content, { level: 9 }).length).reduce((sum, size) => sum + size)).toBeLessThanOrEqual(MOST_BYTES);
    expect(files.filter((file) => /^ort.*\.(mjs|wasm)$/.test(file))).toHaveLength(3);
    for (const content of code) expect(content.toString()).not.toMatch(/from"onnxruntime|import\("onnxruntime/);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
