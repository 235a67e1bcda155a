// The half of `benchmarks/javascript.py` that runs in Node: pictures beside the native ones, calls, switches, vectors.
import { readFileSync } from "node:fs";
import { readSafetensors } from "../js/dist/bundle/safetensors.js";
import { readVectors } from "../js/dist/conformance/vectors.js";
import { QuadPipeline, verify } from "../js/dist/index.js";

const [bundle, folder] = process.argv.slice(2);
const [SEED, CALLS] = [5, 20];

const median = (times) => times.toSorted((a, b) => a - b)[Math.floor(times.length / 2)];
const rounded = (value, digits = 1) => Number(value.toFixed(digits));

const begin = performance.now();
const pipe = await QuadPipeline.open(bundle, { threads: 1 });
const open_ms = performance.now() - begin;
const conformance = await readVectors(pipe.bundle);

function pictureOf(name) {
  if (name === undefined) return undefined;
  const { data, shape } = conformance.tensor(name);
  return { data, width: shape[1], height: shape[0] };
}

const psnr = {};
for (const { task, prompt, image, mask } of conformance.vectors.pictures) {
  const pictures = { image: pictureOf(image), mask_image: pictureOf(mask) };
  const { images } = await pipe.run(prompt, { task, seed: SEED, output_type: "np", ...pictures });
  const native = readFileSync(`${folder}/${task}.bin`);
  const expected = new Float32Array(native.buffer.slice(native.byteOffset, native.byteOffset + native.length));
  const squares = expected.reduce((sum, value, i) => sum + (value - images[0].data[i]) ** 2, 0);
  psnr[task] = rounded(10 * Math.log10(expected.length / squares));
}

const { tensors } = readSafetensors("probes", await pipe.bundle.read("probes.safetensors"));
const probe = new Map(["sample", "timestep", "encoder_hidden_states"].map((name) => [name, tensors.get(`0/${name}`)]));
const unet = pipe.graph("unet");
const [calls, switches] = [[], []];
const mixes = await Promise.all(pipe.adapters.map((name) => pipe.mix(new Map([[name, 1]]))));
for (let i = 0; i < CALLS; i++) {
  const start = performance.now();
  await unet.bind(mixes[i % mixes.length]);
  switches.push(performance.now() - start);
  const before = process.cpuUsage();
  await unet.run(probe);
  const { user, system } = process.cpuUsage(before);
  calls.push((user + system) / 1e3);
}

const checks = await verify(pipe);
const passes = `${checks.filter((check) => check.passes).length} of ${checks.length}`;
const failed = checks.filter((check) => !check.passes).map(({ kind, name, distance }) => `${kind} ${name}: ${rounded(distance, 3)}`);
const times = { open_ms: rounded(open_ms, 0), unet_cpu_ms: rounded(median(calls)), switch_ms: rounded(median(switches), 2) };
process.stdout.write(JSON.stringify({ psnr, ...times, first_switch_ms: rounded(switches[0]), passes, failed }));
