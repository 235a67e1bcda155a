// What makes a U-Net call of onnxruntime-web faster or not: `node benchmarks/javascript_levers.mjs BUNDLE... [--threads N]`, after `npm run build` in `js/`.
// Each lever and the plain call take turns in one process, one thread unless the lever says otherwise; CPU milliseconds, least and median of
// CALLS, wall milliseconds, and how far the output is from the plain call's (dB).
import { parseArgs } from "node:util";
import * as ort from "../js/node_modules/onnxruntime-web/dist/ort.node.min.mjs";
import { readSafetensors } from "../js/dist/bundle/safetensors.js";
import { QuadPipeline } from "../js/dist/index.js";

const CALLS = 15;
const PLAIN = { graphOptimizationLevel: "all", extra: { session: { disable_quant_qdq: "1" } } };
const extra = (session) => ({ ...PLAIN, extra: { session: { ...PLAIN.extra.session, ...session } } });
const LEVERS = {
  plain: PLAIN,
  "optimization disabled": { ...PLAIN, graphOptimizationLevel: "disabled" },
  "optimization basic": { ...PLAIN, graphOptimizationLevel: "basic" },
  "optimization extended": { ...PLAIN, graphOptimizationLevel: "extended" },
  "optimization layout": { ...PLAIN, graphOptimizationLevel: "layout" },
  "quantized kernels by the library": { ...PLAIN, extra: {} },
  "no memory arena": { ...PLAIN, enableCpuMemArena: false },
  "no memory pattern": { ...PLAIN, enableMemPattern: false },
  "parallel execution": { ...PLAIN, executionMode: "parallel" },
  "denormals as zero": extra({ set_denormal_as_zero: "1" }),
  "GELU approximated": { ...PLAIN, extra: { ...PLAIN.extra, optimization: { enable_gelu_approximation: "1" } } },
  "no prepacking": extra({ disable_prepacking: "1" }),
};

const sorted = (times) => times.toSorted((a, b) => a - b);
const rounded = (value) => Number(value.toFixed(1));

async function timed(session, feeds) {
  const [cpu, wall] = [process.cpuUsage(), performance.now()];
  const output = (await session.run(feeds))[session.outputNames[0]];
  const { user, system } = process.cpuUsage(cpu);
  return { cpu: (user + system) / 1e3, wall: performance.now() - wall, data: output.data };
}

function decibels(expected, found) {
  let [signal, noise] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    signal += expected[i] ** 2;
    noise += (expected[i] - found[i]) ** 2;
  }
  return noise === 0 ? "equal" : rounded(10 * Math.log10(signal / noise));
}

const TYPES = { Float32Array: "float32", Int8Array: "int8", Int16Array: "int16", Uint8Array: "uint8", BigInt64Array: "int64" };
const wrapped = ({ data, shape }) => new ort.Tensor(TYPES[data.constructor.name], data, shape);

const { positionals, values } = parseArgs({ allowPositionals: true, options: { threads: { type: "string", default: "1" } } });
for (const bundle of positionals) {
  const pipe = await QuadPipeline.open(bundle, { threads: Number(values.threads), memory: "minimal" });
  const { tensors } = readSafetensors("probes", await pipe.bundle.read("probes.safetensors"));
  const model = await pipe.bundle.read("unet/model.onnx");
  const data = "unet/model.onnx.data" in pipe.manifest.files ? await pipe.bundle.read("unet/model.onnx.data") : undefined;
  const mix = await pipe.mix(new Map([[pipe.adapters[0], 1]]));
  const feeds = {};
  for (const [name, tensor] of mix.buffers.arrays) feeds[name] = wrapped(tensor);
  for (const name of ["sample", "timestep", "encoder_hidden_states"]) feeds[name] = wrapped(tensors.get(`0/${name}`));
  const sessions = new Map();
  for (const [name, options] of Object.entries(LEVERS)) {
    const externalData = data ? [{ path: "model.onnx.data", data }] : [];
    try {
      const begin = performance.now();
      const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"], externalData, ...options });
      const own = Object.fromEntries(session.inputNames.map((input) => [input, feeds[input]]));
      sessions.set(name, { session, own, load_ms: performance.now() - begin, times: [] });
    } catch (error) {
      console.log(`${name}: ${error.message.split("\n")[0].slice(0, 120)}`);
    }
  }
  for (let call = 0; call <= CALLS; call++) {
    for (const lever of sessions.values()) {
      const time = await timed(lever.session, lever.own);
      if (call) lever.times.push(time);
      lever.data = time.data;
    }
  }
  console.log(`\n${bundle}: ${pipe.manifest.precision}, ${ort.env.wasm.numThreads} thread(s)`);
  for (const [name, { times, data: output, load_ms }] of sessions) {
    const [cpu, wall] = ["cpu", "wall"].map((key) => sorted(times.map((time) => time[key])));
    const half = Math.floor(CALLS / 2);
    const distance = decibels(sessions.get("plain").data, output);
    console.log(`  ${name}: CPU ${rounded(cpu[0])}, ${rounded(cpu[half])}; wall ${rounded(wall[0])}; load ${rounded(load_ms)}; ${distance}`);
  }
}
