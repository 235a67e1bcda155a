// What `device_backend.test.ts` has a page do with its backend.
import { openDeviceBackend } from "/device-backend.js";

const PLACE = { runtime: "/device/", bundle: "/bundle/" };
let backend;

async function pngOf(pixels, side) {
  const canvas = new OffscreenCanvas(side, side);
  canvas.getContext("2d").putImageData(new ImageData(Uint8ClampedArray.from(pixels), side), 0, 0);
  return canvas.convertToBlob();
}

async function digestOf(picture) {
  const bitmap = await createImageBitmap(picture);
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const hash = await crypto.subtle.digest("SHA-256", context.getImageData(0, 0, bitmap.width, bitmap.height).data);
  return [...new Uint8Array(hash)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function refused(work) {
  const error = await work.catch((thrown) => thrown);
  return `${error.kind} ${error.message}`;
}

async function adapters() {
  return (await backend.adapters()).map((adapter) => [adapter.name, adapter.source, adapter.previous]);
}

Object.assign(globalThis, {
  async open(token) {
    backend = await openDeviceBackend(PLACE, { token });
  },
  card: () => backend.card(),
  async run({ task, image, mask, side }) {
    const request = { task, prompt: "the car", seed: 3, steps: 2 };
    if (image) request.image = await pngOf(image, side);
    if (mask) request.mask = await pngOf(mask, side);
    return digestOf((await backend.run(request)).picture);
  },
  async watched(task) {
    const image = await pngOf(new Array(4 * 64).fill(255), 8);
    const request = { task, prompt: "", seed: 1, steps: 3, image, mask: image };
    const steps = [];
    let previews = 0;
    await backend.run(request, { onProgress: (...done) => steps.push(done), onPreview: () => previews++ });
    const abort = new AbortController();
    const running = backend.run({ ...request, steps: 50 }, { signal: abort.signal, onProgress: () => abort.abort() });
    const error = await running.then(() => "none").catch(({ name }) => name);
    return { steps, previews, error };
  },
  refusedTask: () => refused(backend.run({ task: "none", prompt: "", seed: 0 })),
  refusedLora: () => refused(backend.installAdapter(new File([], "a.safetensors"), { name: "a" })),
  refusedToken: () => refused(openDeviceBackend(PLACE, { token: "another" })),
  async install({ bytes, name }) {
    await backend.installAdapter(new File([Uint8Array.from(bytes)], "a.qpack"), { name });
    return adapters();
  },
  async rollback(name) {
    await backend.rollback(name);
    return adapters();
  },
});
