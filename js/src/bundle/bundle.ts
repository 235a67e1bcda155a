/** Opening a bundle: nothing in it is trusted by its name; as `quad.runtime.bundle`. A file is hashed each time that it is read. */

import { DecodeError, type Decoder, decodeJson } from "../core/decode.js";
import { type Profile, profileDecoder } from "../core/encoding.js";
import { CompatibilityError, InputError, mismatch, throwIfAborted, UsageError, VerificationError } from "../core/errors.js";
import {
  BASE_CORRECTION_FILE,
  BUNDLE_FILE,
  type BundleManifest,
  bundleManifest,
  componentFiles,
  FORMAT_VERSION,
  PROFILE_FILE,
  pictureSizes,
  SLOTS_FILE,
  TOKENIZER_FILE,
} from "../core/manifest.js";
import { sizeText } from "../core/picture_size.js";
import { MOST_STEPS } from "../core/sampling.js";
import { isCorrected, type SlotTable, slotTable, TEXT_ENCODER, UNET } from "../core/slots.js";
import { quoted } from "../core/text.js";
import { checkDigest, sha256 } from "./digest.js";
import { HttpSource } from "./http_source.js";
import type { BundleSource } from "./source.js";

export const COMPONENTS = [UNET, TEXT_ENCODER, "vae_encoder", "vae_decoder"] as const;
/** The graphs that hang on the size of the pictures. */
export const SIZED = [UNET, "vae_encoder", "vae_decoder"] as const;
/** What some bundles have beside `vae_decoder`, for calls that ask for it. */
export const TINY_DECODER = "tiny_decoder";
const AGAIN = "fetch or build the bundle again";

/** How the files of a bundle are read. */
export interface OpenOptions {
  readonly signal?: AbortSignal | undefined;
  /** Called with a file's name, the bytes of it that are there, and how many it has. */
  readonly onProgress?: ((file: string, loaded: number, total: number | undefined) => void) | undefined;
}

/** An opened bundle: what it says, and what its graph's inputs mean. */
export class Bundle {
  readonly source: BundleSource;
  readonly manifest: BundleManifest;
  readonly slots: SlotTable;
  readonly profile: Profile;

  constructor(source: BundleSource, manifest: BundleManifest, slots: SlotTable, profile: Profile) {
    this.source = source;
    this.manifest = manifest;
    this.slots = slots;
    this.profile = profile;
  }

  /** Of its place, for messages. */
  get name(): string {
    return this.source.name.split("/").at(-1) || this.source.name;
  }

  /** How many groups of adapters there are. */
  get groupCount(): number {
    return 1 + (this.manifest.components[UNET]?.groups?.length ?? 0);
  }

  /** Digests of slots, profile, and any correction of the base, which an adapter must have been packed for. */
  get digests(): ReadonlyMap<string, string> {
    const digests = new Map(["slots", "profile"].map((parent) => [parent, this.manifest.parents[parent] ?? "none"]));
    return isCorrected(this.slots) ? digests.set("correction", this.manifest.files[BASE_CORRECTION_FILE]!.sha256) : digests;
  }

  /** The bytes of a shipped file. Raises a `VerificationError` where the manifest does not list it, or it is another than that says. */
  read(file: string, options: OpenOptions = {}): Promise<Uint8Array> {
    return readListed(this.source, this.manifest, file, options);
  }
}

/** Open a bundle and check that it is what its manifest says. Raises an `InputError` where there is none, a `VerificationError` otherwise. */
export async function openBundle(source: BundleSource, options: OpenOptions = {}): Promise<Bundle> {
  if (typeof source?.read !== "function") {
    throw new UsageError(mismatch("bundle", "an address, a directory or a BundleSource", quoted(source), "give one"));
  }
  const manifest = await readManifest(source, options);
  const where = `${source.name}/${BUNDLE_FILE}`;
  checkListed(where, manifest);
  checkNumbers(where, manifest);
  const slots = await readParent(source, manifest, SLOTS_FILE, "slots", slotTable, options);
  const profile = await readParent(source, manifest, PROFILE_FILE, "profile", profileDecoder, options);
  if (isCorrected(slots) && !Object.hasOwn(manifest.files, BASE_CORRECTION_FILE)) {
    throw new VerificationError(mismatch(where, `a digest of ${BASE_CORRECTION_FILE}, which slots have`, "none", AGAIN));
  }
  const groups = 1 + (manifest.components[UNET]!.groups?.length ?? 0);
  if (groups !== 1 + (profile.groups?.length ?? 0)) {
    throw new VerificationError(mismatch(where, `${1 + (profile.groups?.length ?? 0)} groups of graphs of ${UNET}`, groups, AGAIN));
  }
  if (!manifest.engines.includes("ort")) {
    const way = "build it again with --target cpu";
    throw new CompatibilityError(mismatch("engine", `${manifest.engines.join(" or ")}, which this bundle was built for`, "ort", way));
  }
  return new Bundle(source, manifest, slots, profile);
}

/** The graphs that hang on the size of the pictures, those that a bundle has by choice among them. */
export function sizedComponents(manifest: BundleManifest): readonly string[] {
  return Object.hasOwn(manifest.components, TINY_DECODER) ? [...SIZED, TINY_DECODER] : SIZED;
}

async function readManifest(source: BundleSource, options: OpenOptions): Promise<BundleManifest> {
  const where = `${source.name}/${BUNDLE_FILE}`;
  const content = await source.read(BUNDLE_FILE, { signal: options.signal });
  if (content === undefined) {
    const way = "make one with quad build MODEL -o BUNDLE";
    throw new InputError(mismatch(source.name, `a bundle directory with ${BUNDLE_FILE}`, "none", way));
  }
  // The version first, so that a newer format is told apart from a damaged file.
  const version = decoded(where, content, "JSON object", (value) => (value as { format_version?: unknown } | null)?.format_version);
  if (version !== FORMAT_VERSION) {
    const way = "update quad or build the bundle again";
    throw new VerificationError(mismatch(where, `format version ${FORMAT_VERSION}`, quoted(version), way));
  }
  const manifest = decoded(where, content, "BundleManifest", bundleManifest);
  if (!manifest.sha256) throw new VerificationError(mismatch(where, "a sealed manifest", "no sha256", AGAIN));
  // The seal is the digest of the same text with an empty seal; no file's digest is the seal, so it stands there once.
  const text = new TextDecoder().decode(content).replace(/\n+$/, "");
  const unsealed = text.replace(`"sha256":"${manifest.sha256}"`, '"sha256":""');
  if ((await sha256(new TextEncoder().encode(unsealed))) !== manifest.sha256) {
    throw new VerificationError(mismatch(where, `the manifest sealed ${manifest.sha256.slice(0, 8)}`, "another text", AGAIN));
  }
  return manifest;
}

async function readListed(source: BundleSource, manifest: BundleManifest, file: string, options: OpenOptions): Promise<Uint8Array> {
  const where = `${source.name}/${file}`;
  const entry = Object.hasOwn(manifest.files, file) ? manifest.files[file] : undefined;
  if (entry === undefined) {
    throw new VerificationError(mismatch(`${source.name}/${BUNDLE_FILE}`, `an entry for ${file}`, "none", AGAIN));
  }
  if (file.split("/").some((part) => part === "" || part === "." || part === "..") || /[\\:\0]/.test(file)) {
    throw new VerificationError(mismatch(source.name, "names inside the bundle", quoted(file), AGAIN));
  }
  throwIfAborted(options.signal, where);
  const onProgress = options.onProgress && ((loaded: number, total: number | undefined) => options.onProgress?.(file, loaded, total));
  const content = await source.read(file, { sha256: entry.sha256, size: entry.size_bytes, signal: options.signal, onProgress });
  if (content === undefined) throw new VerificationError(mismatch(source.name, `a file ${file}`, "none", AGAIN));
  const digest = await sha256(content);
  if (digest !== entry.sha256 && source instanceof HttpSource) await source.forget(entry.sha256);
  checkDigest(where, digest, entry.sha256, AGAIN);
  return content;
}

/** A file whose digest is one of the manifest's parents: the file is canonical JSON, so that its bytes are what the digest is of. */
async function readParent<T>(
  source: BundleSource,
  manifest: BundleManifest,
  file: string,
  parent: string,
  decoder: Decoder<T>,
  options: OpenOptions,
): Promise<T> {
  const content = await readListed(source, manifest, file, options);
  const value = decoded(`${source.name}/${file}`, content, parent === "slots" ? "SlotTable" : "Profile", decoder);
  const expected = manifest.parents[parent] ?? "none";
  const end = content.at(-1) === 10 ? content.length - 1 : content.length;
  const digest = await sha256(content.subarray(0, end));
  if (digest !== expected) {
    const promised = `${parent} digest ${expected.slice(0, 8)}`;
    throw new VerificationError(mismatch(`${source.name}/${BUNDLE_FILE}`, promised, digest.slice(0, 8), AGAIN));
  }
  return value;
}

function decoded<T>(where: string, content: Uint8Array, kind: string, decoder: Decoder<T>): T {
  try {
    return decodeJson(content, decoder);
  } catch (error) {
    if (!(error instanceof DecodeError)) throw error;
    throw new VerificationError(mismatch(where, `a ${kind}`, `something else (${error.message})`, AGAIN));
  }
}

/** Every file that will be opened must have a digest. */
function checkListed(where: string, manifest: BundleManifest): void {
  for (const component of COMPONENTS) {
    if (!Object.hasOwn(manifest.components, component)) {
      const found = quoted(Object.keys(manifest.components).sort());
      throw new VerificationError(mismatch(where, `a component ${component}`, found, AGAIN));
    }
  }
  const needed = [
    SLOTS_FILE,
    PROFILE_FILE,
    TOKENIZER_FILE,
    ...Object.values(manifest.components).flatMap(componentFiles),
    ...manifest.adapters.flatMap((name) => [`adapters/${name}/adapter.json`, `adapters/${name}/adapter.safetensors`]),
  ];
  const missing = needed.filter((name) => !Object.hasOwn(manifest.files, name));
  if (missing.length) {
    throw new VerificationError(mismatch(where, "a digest for every file", `none for ${missing.join(", ")}`, AGAIN));
  }
}

/** Numbers that must go together for a picture to come of them. */
function checkNumbers(where: string, manifest: BundleManifest): void {
  const { schedule, latent } = manifest;
  const betas = schedule.trained_betas;
  if (!(schedule.steps >= 2 && schedule.steps <= MOST_STEPS) || (betas !== undefined && betas.length !== schedule.steps)) {
    throw new VerificationError(mismatch(where, `a schedule of 2 to ${MOST_STEPS} timesteps`, schedule.steps, AGAIN));
  }
  if (latent.scale.length !== latent.channels || latent.shift.length !== latent.channels) {
    const found = `${latent.scale.length} and ${latent.shift.length}`;
    throw new VerificationError(mismatch(where, `${latent.channels} scales and shifts`, found, AGAIN));
  }
  checkSizes(where, manifest);
  for (const [name, task] of Object.entries(manifest.tasks)) {
    if (task.adapter !== null && !manifest.adapters.includes(task.adapter)) {
      throw new VerificationError(mismatch(`${where}, task ${name}`, "one of the bundle's adapters", quoted(task.adapter), AGAIN));
    }
  }
}

/** Sizes of whole latent pixels, each once, and a graph for each. */
function checkSizes(where: string, manifest: BundleManifest): void {
  const sizes = pictureSizes(manifest);
  const factor = manifest.latent.factor;
  const names = sizes.map(sizeText);
  const whole = sizes.every((size) => size.width % factor === 0 && size.height % factor === 0);
  if (sizes[0].width !== manifest.size || new Set(names).size < names.length || !whole) {
    const expected = `sizes of multiples of ${factor}, each once, the first ${manifest.size} wide`;
    throw new VerificationError(mismatch(where, expected, names.join(", "), AGAIN));
  }
  for (const component of sizedComponents(manifest)) {
    const part = manifest.components[component]!;
    for (const group of [part, ...(part.groups ?? [])]) {
      const own = Object.keys(group.sizes ?? {}).sort();
      if (own.join() !== names.slice(1).sort().join()) {
        const found = own.join(", ") || "the first alone";
        throw new VerificationError(mismatch(where, `a graph of ${component} for each of ${names.join(", ")}`, found, AGAIN));
      }
    }
  }
}
