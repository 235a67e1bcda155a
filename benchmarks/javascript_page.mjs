// What `javascript_chromium.mjs` has a page do, on the page itself or in the worker that quad's page has.
import { readSafetensors } from "../js/src/bundle/safetensors.ts";
import { readVectors } from "../js/src/conformance/vectors.ts";
import { QuadPipeline, WorkerPipeline } from "../js/src/index.ts";

const [SEED, CALLS, SWITCHES] = [5, 20, 40];
const OPTIONS = { wasmPaths: `${location.origin}/device/` };
const median = (times) => times.toSorted((a, b) => a - b)[Math.floor(times.length / 2)];
let pipe, probe;

async function inWorker() {
  return WorkerPipeline.open(new Worker("/device/worker.js", { type: "module" }), `${location.origin}/bundle/`, OPTIONS);
}

Object.assign(globalThis, {
  // A visit: milliseconds until the bundle is open, then until there is a picture, and until there is a second one.
  async visit() {
    const begin = performance.now();
    const worker = await inWorker();
    const opened = performance.now();
    const [task] = Object.keys(worker.manifest.tasks).filter((name) => name === "text-to-image");
    await worker.run("a red car", { task, seed: SEED });
    const first = performance.now();
    await worker.run("a red car", { task, seed: SEED + 1 });
    const end = performance.now();
    const names = worker.manifest.adapters;
    const switches = [];
    for (let i = 0; i < SWITCHES; i++) {
      const start = performance.now();
      await worker.set_adapters(names[i % names.length]);
      if (i >= names.length) switches.push(performance.now() - start);
    }
    const { threads } = worker;
    return { threads, open_ms: opened - begin, first_ms: first - begin, second_ms: end - first, switch_ms: median(switches) };
  },
  // Pictures of all tasks there and back: PSNR to the native ones, and whether the first one came again to the bit.
  async pictures() {
    pipe = await QuadPipeline.open(`${location.origin}/bundle/`, OPTIONS);
    const conformance = await readVectors(pipe.bundle);
    const given = (name) => {
      if (name === undefined) return undefined;
      const { data, shape } = conformance.tensor(name);
      return { data, width: shape[1], height: shape[0] };
    };
    const made = async ({ task, prompt, image, mask }) => {
      const options = { task, seed: SEED, output_type: "np", image: given(image), mask_image: given(mask) };
      return (await pipe.run(prompt, options)).images[0].data;
    };
    const psnr = {};
    const { pictures } = conformance.vectors;
    const first = await made(pictures[0]);
    for (const vector of pictures.slice(1).concat(pictures[0])) {
      const data = await made(vector);
      const expected = new Float32Array(await (await fetch(`/native/${vector.task}.bin`)).arrayBuffer());
      const squares = expected.reduce((sum, value, i) => sum + (value - data[i]) ** 2, 0);
      psnr[vector.task] = 10 * Math.log10(expected.length / squares);
      if (vector === pictures[0]) return { psnr, there_and_back: data.every((value, i) => value === first[i]) };
    }
  },
  // Once, so that what follows is measured alone.
  async prepare() {
    pipe ??= await QuadPipeline.open(`${location.origin}/bundle/`, OPTIONS);
    const { tensors } = readSafetensors("probes", await pipe.bundle.read("probes.safetensors"));
    probe = new Map(["sample", "timestep", "encoder_hidden_states"].map((name) => [name, tensors.get(`0/${name}`)]));
    await pipe.graph("unet").run(probe);
    return pipe.threads;
  },
  async calls() {
    const times = [];
    for (let i = 0; i < CALLS; i++) {
      const start = performance.now();
      await pipe.graph("unet").run(probe);
      times.push(performance.now() - start);
    }
    return { calls: CALLS, least_ms: Math.min(...times), median_ms: median(times) };
  },
});
