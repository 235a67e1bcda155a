/** What `chromium.test.ts` has a page do: answers go to `/answer` of its own origin. */

import { HttpSource, OriginFileCache, QuadPipeline, type RgbaPicture, verify, WorkerPipeline } from "../../src/index.js";

async function walk(): Promise<Record<string, unknown>> {
  const wasmPaths = `${location.origin}/ort/`;
  const begin = performance.now();
  const pipe = await QuadPipeline.open("/bundle/", { wasmPaths });
  const open_ms = performance.now() - begin;
  const image = new ImageData(40, 40);
  image.data.forEach((_, i) => {
    image.data[i] = i % 4 === 3 ? 255 : (i * 37) % 256;
  });
  const [first, second] = [...pipe.tasks.keys()].filter((task) => pipe.tasks.get(task)!.mask !== "input");
  const picture = async (from: QuadPipeline | WorkerPipeline, task = first!): Promise<string> => {
    const { images } = await from.run("the car", { task, image, seed: 1, num_inference_steps: 2 });
    return (images[0] as RgbaPicture).data.join();
  };
  const [a, b, again] = [await picture(pipe), await picture(pipe, second), await picture(pipe)];
  const failed = (await verify(pipe)).filter((check) => !check.passes);

  const worker = new Worker("/worker.js", { type: "module" });
  const away = await WorkerPipeline.open(worker, `${location.origin}/bundle/`, { wasmPaths });

  const nobody = (): Promise<Response> => Promise.reject(new TypeError("offline"));
  const offline = await QuadPipeline.open(new HttpSource("/bundle/", { fetch: nobody }), { wasmPaths });

  const files = new OriginFileCache("test");
  await files.put("key", Uint8Array.of(1, 2, 3));
  const kept = await files.get("key");
  await files.remove("key");

  return {
    open_ms,
    threads: pipe.threads,
    notes: pipe.notes,
    isolated: crossOriginIsolated,
    switchesBack: a === again && a !== b,
    failed,
    inWorker: (await picture(away)) === a,
    offline: (await picture(offline)) === a,
    originFiles: [kept?.join(), await files.get("key")],
  };
}

const answer = await walk().catch((error: unknown) => ({ error: String(error) }));
await fetch("/answer", { method: "POST", body: JSON.stringify(answer) });
