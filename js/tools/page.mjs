// The runtime as a page loads it, without a build step of its own: `node tools/page.mjs [FOLDER]`.
// `runtime.js` is what the page imports, `worker.js` its worker; the engine's files lie beside as they are. FOLDER is replaced as a whole.
import { chmod, cp, mkdir, mkdtemp, rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const HERE = fileURLToPath(new URL("..", import.meta.url));
const ENGINE = join(HERE, "node_modules/onnxruntime-web/dist");
const ENGINE_SCRIPT = "ort.wasm.min.mjs";
const ENGINE_FILES = [ENGINE_SCRIPT, "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"];
export const PAGE_FOLDER = join(HERE, "../src/quad/serve/studio/device");

// One build of the engine, whatever the code asks for: the page has no GPU's and no Node's.
const engineBeside = {
  name: "engine beside",
  setup({ onResolve }) {
    onResolve({ filter: /^onnxruntime-web(\/.*)?$/ }, () => ({ path: `./${ENGINE_SCRIPT}`, external: true }));
  },
};

/** Bundle into a folder. */
export async function writePage(folder) {
  await mkdir(dirname(folder), { recursive: true });
  const part = await mkdtemp(`${folder}.part-`);
  try {
    await build({
      entryPoints: { runtime: join(HERE, "src/page.ts"), worker: join(HERE, "src/worker.ts") },
      outdir: part,
      bundle: true,
      minify: true,
      format: "esm",
      platform: "browser",
      target: "es2022",
      plugins: [engineBeside],
      legalComments: "external",
      logLevel: "warning",
    });
    for (const file of ENGINE_FILES) await cp(join(ENGINE, file), join(part, file));
    await chmod(part, 0o755);
    await rm(folder, { recursive: true, force: true });
    await rename(part, folder);
  } finally {
    await rm(part, { recursive: true, force: true });
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await writePage(process.argv[2] ?? PAGE_FOLDER);
