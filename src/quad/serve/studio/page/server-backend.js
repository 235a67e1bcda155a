/** The backend behind the page: the server that it came from. */

import { BackendError } from "./backend.js";
import { bytes, short } from "./dom.js";
import { Api, base64, png } from "./http.js";

/** @typedef {import("./backend.js").Backend} Backend */

/**
 * @param {string | null} token
 * @returns {Promise<Backend>}
 */
export async function openServerBackend(token) {
  const api = new Api(token);
  const bundle = await api.json("v1/bundle");
  /** @type {Set<import("./backend.js").Capability>} */
  const capabilities = new Set();
  if (bundle.previews) capabilities.add("preview");
  if (bundle.uploads) capabilities.add("install").add("rollback");
  if (bundle.reference) capabilities.add("compare");
  return {
    label: `on this computer, by ${bundle.engine}`,
    capabilities,
    card: () => card(api),
    run: (request, options = {}) => (request.reference ? reference(api, request, options) : run(api, request, options)),
    adapters: () => adapters(api),
    installAdapter: (file, options) => install(api, file, options),
    rollback: (name) => rollback(api, name),
    close: () => {},
  };
}

/**
 * @param {Api} api
 * @returns {Promise<import("./backend.js").Card>}
 */
async function card(api) {
  const [bundle, { tasks }, all] = await Promise.all([api.json("v1/bundle"), api.json("v1/tasks"), adapters(api)]);
  const merged = Object.entries(bundle.merged).map(([name, weight]) => `${name} ${weight}`);
  /** @type {[string, string][]} */
  const facts = [
    ["On disk", bytes(bundle.size_bytes)],
    ["Floats", bundle.float_type],
    ["Slots", `${bundle.slots}, ${bundle.slot_mode}`],
    [
      "Profile",
      `${bundle.anchor ? `anchored on ${bundle.anchor}` : bundle.profile}${bundle.profiles > 1 ? `, ${bundle.profiles} of them` : ""}`,
    ],
    ["Built by", `quad ${bundle.quad_version}`],
    ["Memory, so far", bytes(bundle.peak_ram_bytes)],
  ];
  if (merged.length > 0) facts.push(["In its weights", merged.join(", ")]);
  return {
    name: bundle.name,
    target: bundle.target,
    precision: bundle.precision,
    engine: bundle.engine,
    facts,
    tasks: Object.entries(tasks).map(([name, spec]) => taskCard(name, spec)),
    samplers: bundle.samplers,
    sizes: bundle.sizes,
    adapters: all,
    heatMaps: bundle.heat_maps,
    report: bundle.report ? "report.html" : null,
  };
}

/**
 * @param {string} name
 * @param {any} spec as in a bundle's manifest
 * @returns {import("./backend.js").TaskCard}
 */
export function taskCard(name, spec) {
  const blends = Boolean(spec.blend);
  const cut = spec.condition === "cut-image" && spec.mask === "input";
  return {
    name,
    adapter: spec.adapter,
    picture: spec.condition === "image" || spec.condition === "masked-image" || cut || spec.strength !== undefined || blends,
    mask: spec.mask === "input",
    sampler: `${spec.sampler.kind}:${spec.sampler.steps}`,
    steps: spec.sampler.steps,
    guidance: spec.guidance ?? 1,
    strength: spec.strength ?? null,
    imageGuidance: spec.image_guidance ?? null,
  };
}

/**
 * @param {Api} api
 * @returns {Promise<import("./backend.js").AdapterCard[]>}
 */
async function adapters(api) {
  const { adapters: all } = await api.json("v1/adapters");
  return all.map((/** @type {any} */ one) => ({
    name: one.name,
    tasks: one.tasks,
    rank: one.rank,
    bits: one.bits,
    bytes: one.size_bytes,
    source: one.source,
    headroom: one.headroom,
    sampler: one.defaults?.sampler ?? null,
    guidance: one.defaults?.guidance ?? null,
    trigger: one.defaults?.trigger_words ?? null,
    previous: one.previous,
  }));
}

/** @param {import("./backend.js").PictureRequest} request */
async function body(request) {
  return {
    task: request.task,
    prompt: request.prompt,
    negative_prompt: request.negativePrompt ?? "",
    adapters: request.adapters ?? null,
    image: request.image ? await base64(request.image) : null,
    mask_image: request.mask ? await base64(request.mask) : null,
    sampler: request.sampler ?? null,
    num_inference_steps: request.steps ?? null,
    guidance_scale: request.guidance ?? null,
    strength: request.strength ?? null,
    image_guidance_scale: request.imageGuidance ?? null,
    seed: request.seed,
    width: request.size?.[0] ?? null,
    height: request.size?.[1] ?? null,
  };
}

/**
 * @param {Api} api
 * @param {import("./backend.js").PictureRequest} request
 * @param {import("./backend.js").RunOptions} options
 * @returns {Promise<import("./backend.js").Picture>}
 */
async function run(api, request, { signal, onProgress, onPreview }) {
  const begun = performance.now();
  const { id } = await api.post("v1/requests", { ...(await body(request)), previews: onPreview !== undefined, client: "studio" }, signal);
  const path = `v1/requests/${id}`;
  const give_up = () => void api.call(path, { method: "DELETE", keepalive: true }).catch(() => {});
  signal?.addEventListener("abort", give_up, { once: true });
  let end = null;
  try {
    for await (const { kind, data } of api.events(`${path}/events`, signal)) {
      if (kind === "step") onProgress?.(data.index + 1, data.total);
      else if (kind === "preview") onPreview?.(png(data.image));
      else if (kind === "end") end = data;
    }
    if (end?.state !== "done") throw new BackendError(end?.error?.error ?? "The server gave the picture up.", end?.error?.kind);
    const response = await api.call(`${path}/image`, signal ? { signal } : {});
    const picture = await response.blob();
    const { peak_ram_bytes } = await api.json("v1/bundle");
    return {
      picture,
      seed: end.seed ?? request.seed,
      seconds: (performance.now() - begun) / 1000,
      timings: end.timings_ms,
      memory: peak_ram_bytes,
      sampler: end.sampler,
      guidance: end.guidance,
      adapters: end.adapters,
      notes: end.notes,
    };
  } finally {
    signal?.removeEventListener("abort", give_up);
  }
}

/**
 * @param {Api} api
 * @param {import("./backend.js").PictureRequest} request
 * @param {import("./backend.js").RunOptions} options
 * @returns {Promise<import("./backend.js").Picture>}
 */
async function reference(api, request, { signal }) {
  const made = await api.post("v1/reference", await body(request), signal);
  return {
    picture: png(made.image),
    seed: made.seed,
    seconds: made.seconds,
    timings: { total: made.seconds * 1000 },
    memory: null,
    sampler: made.sampler,
    guidance: made.guidance,
    adapters: made.adapters,
    notes: [],
  };
}

/**
 * @param {Api} api
 * @param {File} file
 * @param {import("./backend.js").InstallOptions} options
 * @returns {Promise<import("./backend.js").Verdict>}
 */
async function install(api, file, { name, like, signal }) {
  const query = like ? `?${new URLSearchParams({ like })}` : "";
  const init = { method: "PUT", body: file, headers: { "Content-Type": "application/octet-stream" } };
  const { verdict } = await api.json(`v1/adapters/${encodeURIComponent(name)}${query}`, signal ? { ...init, signal } : init);
  if (verdict === undefined) return { name, facts: [], notes: [] };
  /** @type {[string, string][]} */
  const facts = [
    ["Rank", String(verdict.rank)],
    ["Kept of the file", `${(100 * verdict.applied).toFixed(2)} %`],
    ["Effect", short(verdict.effect)],
    ["Headroom", verdict.headroom === null ? "no bound" : short(verdict.headroom)],
    ["Tried in", `${short(verdict.seconds)} s`],
  ];
  if (verdict.clipped !== null) facts.push(["Most that is cut off", `${(100 * verdict.clipped).toPrecision(2)} %`]);
  if (verdict.tasks.length > 0) facts.unshift(["New task", verdict.tasks.join(", ")]);
  return { name, facts, notes: verdict.notes };
}

/**
 * @param {Api} api
 * @param {string} name
 */
async function rollback(api, name) {
  const adapter = (await adapters(api)).find((one) => one.name === name);
  const path = `v1/adapters/${encodeURIComponent(name)}`;
  await (adapter?.previous ? api.call(`${path}/rollback`, { method: "POST" }) : api.call(path, { method: "DELETE" }));
}

/**
 * The bundle's report as a file: styles inside it are not for this origin's policy.
 *
 * @param {string} path
 * @param {string | null} token
 */
export async function fetchReport(path, token) {
  return (await new Api(token).call(path)).blob();
}
