/** A whole bundle: its vectors, and the laws of a pipeline. Skipped where no bundle is given. */

import { readFileSync } from "node:fs";
import { MessageChannel } from "node:worker_threads";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { openBundle } from "../src/bundle/bundle.js";
import { sha256 } from "../src/bundle/digest.js";
import { HttpSource } from "../src/bundle/http_source.js";
import { DirectorySource, MemorySource } from "../src/bundle/source.js";
import { InputError, QuadError, StoppedError, UsageError, VerificationError } from "../src/core/errors.js";
import { readsPicture } from "../src/core/task.js";
import { type CallOptions, QuadPipeline, type RgbaPicture, verify, WorkerPipeline } from "../src/index.js";
import { NAMES as CALL_OPTIONS } from "../src/pipeline/call_options.js";
import { serve } from "../src/worker/host.js";
import type { Port } from "../src/worker/messages.js";
import { bundlePath, packPath } from "./reference.js";

const SIDE = 20;
const PICTURE = { data: Uint8Array.from({ length: 3 * SIDE * SIDE }, (_, i) => (i * 37) % 256), width: SIDE, height: SIDE };
const MASK = { data: Uint8Array.from({ length: SIDE * SIDE }, (_, i) => (i % SIDE < 8 ? 255 : 0)), width: SIDE, height: SIDE };

/** A manifest's text sealed again, `seal` being the one that it has. */
async function sealed(text: string, seal: string): Promise<Uint8Array> {
  const own = await sha256(new TextEncoder().encode(text.replace(`"sha256":"${seal}"`, '"sha256":""')));
  return new TextEncoder().encode(text.replace(seal, own));
}

/** The test's bundle in memory. */
async function everyFile(): Promise<Map<string, Uint8Array>> {
  const disk = new DirectorySource(bundlePath!);
  const { manifest } = await openBundle(disk);
  const files = new Map<string, Uint8Array>();
  for (const name of ["bundle.json", ...Object.keys(manifest.files)]) files.set(name, (await disk.read(name))!);
  return files;
}

describe.skipIf(bundlePath === undefined)("a bundle", () => {
  let pipe: QuadPipeline;
  let tasks: readonly string[];

  beforeAll(async () => {
    pipe = await QuadPipeline.open(bundlePath!, { threads: 1 });
    tasks = [...pipe.tasks.keys()];
  });

  afterAll(() => pipe.dispose());

  /** Two steps of a task with everything that it reads. */
  function options(task: string): CallOptions<QuadPipeline> {
    const spec = pipe.tasks.get(task)!;
    const mask = spec.mask === "input" ? { mask_image: MASK } : {};
    return { task, num_inference_steps: 2, seed: 3, ...(readsPicture(spec) ? { image: PICTURE, ...mask } : {}) };
  }

  async function picture(task: string, from = pipe): Promise<RgbaPicture> {
    return (await from.run("the car", options(task))).images[0] as RgbaPicture;
  }

  test("refuses by its name whatever an argument cannot be", async () => {
    const own = await QuadPipeline.open(bundlePath!, { threads: 1 }); // what it accepts stays set
    const anything = [
      null,
      "x",
      "",
      1.5,
      -1,
      true,
      1e30,
      Number.NaN,
      [],
      ["x"],
      [null],
      {},
      { a: 1 },
      new Uint8Array(3),
      10n,
      "a\0b",
      "\ud800",
    ];
    const refusedOrDone = async (name: string, value: unknown, call: () => unknown): Promise<void> => {
      try {
        await call();
      } catch (error) {
        expect(error, `${name} = ${String(value)}`).toBeInstanceOf(QuadError);
      }
    };
    const given = { ...options(tasks[0]!), num_inference_steps: 1 };
    const names = Object.keys(CALL_OPTIONS);
    for (const value of anything as never[]) {
      for (const name of names) await refusedOrDone(name, value, () => own.run("a", { ...given, [name]: value }));
      await refusedOrDone("prompt", value, () => own.run(value, given));
      await refusedOrDone("options", value, () => own.run("a", value));
      await refusedOrDone("place", value, () => QuadPipeline.open(value, { threads: 1 }));
      await refusedOrDone("options", value, () => QuadPipeline.open("/nowhere", value));
      for (const method of [
        "set_adapters",
        "load_lora_weights",
        "unload",
        "delete_adapters",
        "adapter_manifest",
        "graph",
        "preview",
      ] as const) {
        await refusedOrDone(method, value, () => (own[method] as (value: unknown) => unknown)(value));
      }
      await refusedOrDone("weights", value, () => own.set_adapters([...own.adapters].slice(0, 1), value));
    }
    expect(() => new HttpSource("http://[")).toThrow("bundle: expected an address, found 'http://['; check it");
    await own.dispose();
  });

  test("computes its conformance vectors", async () => {
    const failed = (await verify(pipe)).filter((check) => !check.passes);
    expect(failed).toEqual([]);
  });

  test("switches there and back to the bit", async () => {
    const first = await Promise.all(tasks.map((task) => picture(task)));
    const again = await Promise.all(tasks.map((task) => picture(task)));
    expect(again).toEqual(first);
    expect(new Set(first.map(({ data }) => data.join())).size).toBe(tasks.length);
  });

  test("makes the same pictures under every memory plan", async () => {
    for (const memory of ["balanced", "minimal"] as const) {
      const other = await QuadPipeline.open(bundlePath!, { threads: 1, memory });
      expect(await picture(tasks[0]!, other)).toEqual(await picture(tasks[0]!));
      await other.dispose();
    }
  });

  test("tells each step, its progress and its preview, and stops when told", async () => {
    const [task] = tasks;
    const told: [number, number][] = [];
    let shown = 0;
    const watched = {
      ...options(task!),
      on_progress: (done: number, total: number) => void told.push([done, total]),
      callback_on_step_end: () => void shown++,
    };
    const output = await pipe.run("the car", watched);
    expect(told).toEqual([[1, 2], [2, 2]]); // biome-ignore format: pairs
    expect(shown).toBe(2);
    expect(output.timings_ms.total).toBeGreaterThan(0);
    const abort = new AbortController();
    const stopped = pipe.run("the car", { ...watched, signal: abort.signal, callback_on_step_end: () => abort.abort() });
    await expect(stopped).rejects.toThrow(StoppedError);
    expect((await pipe.run("the car", options(task!))).images).toEqual(output.images);
  });

  test("makes pictures of a list one by one, with seeds of their own", async () => {
    const [task] = tasks;
    const two = await pipe.run(["the car", "it"], { ...options(task!), num_images_per_prompt: 2 });
    const alone = await pipe.run("it", { ...options(task!), seed: 3 + 3 });
    expect(two.seeds).toEqual([3, 4, 5, 6]);
    expect(two.images[3]).toEqual(alone.images[0]);
  });

  test("guides on a part of the way alone", async () => {
    const call = { ...options(tasks[0]!), guidance_scale: 3, num_inference_steps: 4 };
    const [whole, all, half, none] = [
      await pipe.run("the car", call),
      await pipe.run("the car", { ...call, guidance_interval: [0, 1] }),
      await pipe.run("the car", { ...call, guidance_interval: "0.5:1" }),
      await pipe.run("the car", { ...call, guidance_interval: [0.9999, 1] }),
    ];
    expect(all.images).toEqual(whole.images);
    expect(half.images).not.toEqual(whole.images);
    expect(none.images).toEqual((await pipe.run("the car", { ...call, guidance_scale: 1 })).images);
    expect(none.notes.join()).toMatch(/guidance interval 0.9999:1: no step of .* falls into it/);
  });

  test("uses the adapters that were set, and the base after them", async () => {
    const name = pipe.adapters[0]!;
    await pipe.set_adapters(name);
    expect(pipe.get_active_adapters()).toEqual([name]);
    const own = await picture(tasks[0]!);
    await pipe.set_adapters([name], [0]);
    const off = await picture(tasks[0]!);
    await pipe.disable_lora();
    expect(await picture(tasks[0]!)).toEqual(off);
    expect(own).not.toEqual(off);
    expect(Object.values(await pipe.get_list_adapters()).flat()).toContain(name);
    await expect(pipe.set_adapters("nobody")).rejects.toThrow(UsageError);
    await expect(pipe.run("x", { nonsense: 1 } as CallOptions<QuadPipeline>)).rejects.toThrow("see the README");
  });

  test("takes a pack, and refuses one that was changed, or is not there", async () => {
    const content = new Uint8Array(readFileSync(packPath!));
    const name = await pipe.load_lora_weights(content, "packed");
    await pipe.set_adapters(name);
    const packed = await picture(tasks[0]!);
    await pipe.set_adapters(pipe.adapter_manifest(name).name);
    expect(await picture(tasks[0]!)).toEqual(packed);
    await pipe.delete_adapters(name);
    expect(pipe.adapters).not.toContain(name);
    const changed = content.slice();
    changed[changed.length - 1]! ^= 1;
    await expect(pipe.load_lora_weights(changed)).rejects.toThrow(VerificationError);
    await expect(pipe.load_lora_weights(`${packPath}.none`)).rejects.toThrow(InputError);
  });

  test("works in a worker by the same names", async () => {
    const { port1, port2 } = new MessageChannel();
    serve(port1 as unknown as Port);
    port1.start();
    port2.start();
    const away = await WorkerPipeline.open(port2 as unknown as Port, bundlePath!, { threads: 1, memory: "minimal" });
    const steps: number[] = [];
    const call = { ...options(tasks[0]!), callback_on_step_end: (_: WorkerPipeline, step: number) => void steps.push(step) };
    const output = await away.run("the car", call);
    expect(steps).toEqual([0, 1]);
    const fresh = await QuadPipeline.open(bundlePath!, { threads: 1, memory: "minimal" });
    expect(output.images).toEqual((await fresh.run("the car", options(tasks[0]!))).images);
    await expect(away.set_adapters("nobody")).rejects.toThrow(UsageError);
    await expect(away.run("x", { ...call, signal: AbortSignal.abort() })).rejects.toThrow(StoppedError);
    port1.close();
  });

  test("decodes by a tiny decoder where there is one", async () => {
    const call = options(tasks[0]!);
    await expect(pipe.run("the car", { ...call, tiny_decoder: true })).rejects.toThrow("expected a bundle of quad build --tiny-decoder");
    const files = await everyFile();
    const whole = await QuadPipeline.open(new MemorySource(await everyFile()), { threads: 1 }); // no adapters set by other tests
    const { images } = await whole.run("the car", call);
    await whole.dispose();
    const text = new TextDecoder().decode(files.get("bundle.json"));
    const { manifest } = await openBundle(new MemorySource(files));
    const component = JSON.stringify(manifest.components.vae_encoder);
    // In its place the encoder, which reads another input: whoever runs it is told so.
    const other = text.replace('"components":{', `"components":{"tiny_decoder":${component},`);
    files.set("bundle.json", await sealed(other, manifest.sha256));
    const wrong = await QuadPipeline.open(new MemorySource(files), { threads: 1 });
    expect((await wrong.run("the car", call)).images).toEqual(images);
    await expect(wrong.run("the car", { ...call, tiny_decoder: true })).rejects.toThrow("tiny_decoder");
    await wrong.dispose();
    const own = text.replace('"components":{', `"components":{"tiny_decoder":${JSON.stringify(manifest.components.vae_decoder)},`);
    files.set("bundle.json", await sealed(own, manifest.sha256));
    const same = await QuadPipeline.open(new MemorySource(files), { threads: 1 });
    expect((await same.run("the car", { ...call, tiny_decoder: true })).images).toEqual(images);
    await same.dispose();
  });

  test("a file that was changed is refused when it is read, a name outside at once", async () => {
    const files = await everyFile();
    const opened = await openBundle(new MemorySource(files));
    const { manifest } = opened;
    const model = files.get("unet/model.onnx")!.slice();
    model[10]! ^= 1;
    files.set("unet/model.onnx", model);
    await expect(opened.read("unet/model.onnx")).rejects.toThrow(/expected digest .*fetch or build the bundle again/);
    await expect(opened.read("../secret")).rejects.toThrow(VerificationError);
    const text = new TextDecoder().decode(files.get("bundle.json"));
    files.set("bundle.json", new TextEncoder().encode(text.replace(`"size":${manifest.size}`, `"size":${manifest.size * 2}`)));
    await expect(openBundle(new MemorySource(files))).rejects.toThrow(/expected the manifest sealed/);
    files.set("bundle.json", new TextEncoder().encode(text.replace('"format_version":1', '"format_version":2')));
    await expect(openBundle(new MemorySource(files))).rejects.toThrow("expected format version 1, found 2; update quad");
    files.delete("bundle.json");
    await expect(openBundle(new MemorySource(files))).rejects.toThrow(InputError);
  });
});
