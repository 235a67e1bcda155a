/** The bundle and its adapters for people, from what the runtime in the page says of them. */

const MB = 1e6;

/**
 * @param {any} runtime the module of the page's runtime
 * @param {any} pipe a `WorkerPipeline`
 * @param {any} description what `describe` answers
 * @param {import("./device-packs.js").Packs} packs
 * @returns {import("./backend.js").Card}
 */
export function bundleCard(runtime, pipe, description, packs) {
  const { manifest, engine, threads, notes } = pipe;
  const files = /** @type {{ size_bytes: number }[]} */ (Object.values(manifest.files));
  const bytes = files.reduce((sum, file) => sum + file.size_bytes, 0);
  return {
    name: manifest.name,
    target: manifest.target,
    precision: manifest.precision,
    engine,
    facts: [
      ["Threads", notes[0]?.replace(/^threads: /, "") ?? String(threads)],
      ["Files", `${(bytes / MB).toFixed(1)} MB`],
      ["Built with quad", manifest.quad_version],
    ],
    tasks: Object.entries(description.tasks).map(([name, spec]) => taskCard(runtime, name, spec)),
    samplers: [...runtime.SAMPLER_NAMES],
    sizes: runtime.pictureSizes(manifest).map((/** @type {{ width: number, height: number }} */ size) => [size.width, size.height]),
    adapters: adapterCards(description, packs),
    heatMaps: heatMaps(description),
    report: null,
  };
}

/**
 * @param {any} description
 * @param {import("./device-packs.js").Packs} packs
 * @returns {import("./backend.js").AdapterCard[]}
 */
export function adapterCards({ adapters, tasks }, packs) {
  const specs = /** @type {[string, any][]} */ (Object.entries(tasks));
  return Object.entries(adapters).map(([name, manifest]) => ({
    name,
    tasks: specs.filter(([, spec]) => spec.adapter === name).map(([task]) => task),
    rank: manifest.rank,
    bits: manifest.bits,
    bytes: manifest.size_bytes,
    source: packs.has(name) ? "installed" : "bundle",
    headroom: manifest.headroom ?? null,
    sampler: manifest.defaults?.sampler ?? null,
    guidance: manifest.defaults?.guidance ?? null,
    trigger: manifest.defaults?.trigger_words ?? null,
    previous: packs.hasPrevious(name),
  }));
}

/**
 * @param {any} runtime
 * @param {string} name
 * @param {any} spec
 * @returns {import("./backend.js").TaskCard}
 */
function taskCard(runtime, name, spec) {
  return {
    name,
    adapter: spec.adapter,
    picture: runtime.readsPicture(spec),
    mask: spec.mask === "input",
    sampler: runtime.samplerText(spec.sampler),
    steps: spec.sampler.steps,
    guidance: spec.guidance,
    strength: spec.strength ?? null,
    imageGuidance: spec.image_guidance ?? null,
  };
}

/**
 * How far adapters' outputs on one stored call are apart, as the server tells it.
 *
 * @param {any} description
 * @returns {import("./backend.js").HeatMap[]}
 */
function heatMaps({ adapters }) {
  const entries = /** @type {[string, any][]} */ (Object.entries(adapters));
  const golden = entries.flatMap(([name, manifest]) => (manifest.golden ? [{ name, ...manifest.golden }] : []));
  if (golden.length < 2) return [];
  return [
    {
      title: "How different the adapters are",
      note: "RMS of the difference between two adapters' outputs on one stored call of the U-Net, over the RMS of the row's own output.",
      names: golden.map(({ name }) => name),
      values: golden.map((own) => golden.map((other) => distance(own, other))),
    },
  ];
}

/**
 * @param {{ probe: number, values: number[] }} own
 * @param {{ probe: number, values: number[] }} other
 * @returns {number | null}
 */
function distance(own, other) {
  if (own.probe !== other.probe || own.values.length !== other.values.length) return null;
  const scale = Math.hypot(...own.values);
  const difference = Math.hypot(...own.values.map((value, index) => value - /** @type {number} */ (other.values[index])));
  return scale > 0 ? Number((difference / scale).toFixed(4)) : null;
}
