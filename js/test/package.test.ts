/** The package as a page loads it: small, whole, and asking nobody. */

import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { expect, test } from "vitest";

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
