/** Adapters as files: a pack, a directory, or one of a bundle's own, and whether they were packed for this bundle. */

import type { Bundle, OpenOptions } from "../bundle/bundle.js";
import { checkDigest, sha256 } from "../bundle/digest.js";
import { readSafetensors } from "../bundle/safetensors.js";
import { type AdapterManifest, adapterManifest } from "../core/adapter_manifest.js";
import { DecodeError, decodeJson } from "../core/decode.js";
import { CompatibilityError, InputError, mismatch, VerificationError } from "../core/errors.js";
import { FORMAT_VERSION } from "../core/manifest.js";
import type { Numbers, Tensor } from "../core/tensor.js";
import { quoted } from "../core/text.js";

const MANIFEST_KEY = "quad_adapter";
const DIGEST_KEY = "quad_digest";
const AGAIN = "fetch it again";
/** Element types as NumPy spells them in a pack's digest. */
const SPELLINGS: Readonly<Record<string, string>> = {
  Float64Array: "<f8",
  Float32Array: "<f4",
  BigInt64Array: "<i8",
  Int32Array: "<i4",
  Int16Array: "<i2",
  Int8Array: "|i1",
  BigUint64Array: "<u8",
  Uint32Array: "<u4",
  Uint16Array: "<u2",
  Uint8Array: "|u1",
};

/** What an adapter says of itself, and its tensors by the names that its file gives them. */
export interface AdapterFile {
  readonly manifest: AdapterManifest;
  readonly tensors: ReadonlyMap<string, Tensor>;
}

/** The two files of an adapter that is no pack. */
export interface AdapterFiles {
  /** `adapter.json`. */
  readonly manifest: Uint8Array;
  /** `adapter.safetensors`. */
  readonly tensors: Uint8Array;
}

/** Read a pack, `NAME.qpack`, and check both of its digests. Raises a `VerificationError` for what is none, or was changed. */
export async function readPack(where: string, content: Uint8Array): Promise<AdapterFile> {
  const { metadata, tensors } = readSafetensors(where, content);
  const text = metadata[MANIFEST_KEY];
  if (text === undefined) {
    const way = "pack it where quad[build] is: quad adapt BUNDLE NAME=FILE -o NAME.qpack";
    throw new InputError(mismatch(where, "a pack for this bundle", "a LoRA in floats", way));
  }
  checkDigest(where, await sha256(new TextEncoder().encode(text)), metadata[DIGEST_KEY] ?? "none", AGAIN);
  const manifest = parseManifest(where, new TextEncoder().encode(text));
  checkDigest(where, await contentDigest(tensors), manifest.sha256, AGAIN);
  return { manifest, tensors };
}

/** Read an adapter of two files. Raises a `VerificationError` where the first is no manifest, or the second another than it says. */
export async function readFiles(where: string, files: AdapterFiles): Promise<AdapterFile> {
  const manifest = parseManifest(`${where}/adapter.json`, files.manifest);
  checkDigest(`${where}/adapter.safetensors`, await sha256(files.tensors), manifest.sha256, AGAIN);
  return { manifest, tensors: readSafetensors(`${where}/adapter.safetensors`, files.tensors).tensors };
}

/** The manifest of one of a bundle's own adapters; opened for its slots and profile, or refused with a `CompatibilityError`. */
export async function shippedManifest(bundle: Bundle, name: string, options: OpenOptions = {}): Promise<AdapterManifest> {
  const file = `adapters/${name}/adapter.json`;
  const manifest = parseManifest(`${bundle.source.name}/${file}`, await bundle.read(file, options));
  checkParents(manifest, bundle);
  return manifest;
}

/** The tensors of one of a bundle's own adapters. */
export async function shippedTensors(
  bundle: Bundle,
  name: string,
  manifest: AdapterManifest,
  options: OpenOptions = {},
): Promise<ReadonlyMap<string, Tensor>> {
  const file = `adapters/${name}/adapter.safetensors`;
  const content = await bundle.read(file, options);
  const where = `${bundle.source.name}/${file}`;
  checkDigest(where, bundle.manifest.files[file]!.sha256, manifest.sha256, AGAIN);
  return readSafetensors(where, content).tensors;
}

/**
 * An adapter fits a bundle when slots digest and profile digest are the same and the bundle has its group; shapes prove nothing.
 * Raises a `CompatibilityError` where it was packed for another bundle.
 */
export function checkParents(manifest: AdapterManifest, bundle: Bundle): void {
  for (const [parent, has] of bundle.digests) {
    const packedFor = manifest.parents[parent] ?? "none";
    if (packedFor === has) continue;
    throw new CompatibilityError(
      `adapter ${quoted(manifest.name)} was packed for ${parent} ${packedFor.slice(0, 8)}, bundle ${quoted(bundle.name)} has ` +
        `${has.slice(0, 8)}: run quad adapt ${bundle.name} ${manifest.name}=${manifest.name}.safetensors`,
    );
  }
  if (manifest.group >= bundle.groupCount) {
    const expected = `one of the ${bundle.groupCount} groups of bundle ${quoted(bundle.name)}`;
    const where = `adapter ${quoted(manifest.name)}`;
    throw new CompatibilityError(mismatch(where, expected, `number ${manifest.group + 1}`, "adapt it again"));
  }
}

/** SHA-256 over names, types, shapes and bytes of the tensors, in order of their names. */
async function contentDigest(tensors: ReadonlyMap<string, Tensor>): Promise<string> {
  const parts = [...tensors.keys()].sort().flatMap((name) => {
    const { data, shape } = tensors.get(name)!;
    return [new TextEncoder().encode(JSON.stringify([name, SPELLINGS[data.constructor.name], shape])), bytesOf(data)];
  });
  return sha256(new Uint8Array(await new Blob(parts as Uint8Array<ArrayBuffer>[]).arrayBuffer()));
}

function bytesOf(data: Numbers): Uint8Array {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

function parseManifest(where: string, content: Uint8Array): AdapterManifest {
  try {
    const version = decodeJson(content, (value) => (value as { format_version?: unknown } | null)?.format_version);
    if (version !== FORMAT_VERSION) {
      const way = "update quad or pack the adapter again";
      throw new VerificationError(mismatch(where, `format version ${FORMAT_VERSION}`, quoted(version), way));
    }
    return decodeJson(content, adapterManifest);
  } catch (error) {
    if (!(error instanceof DecodeError)) throw error;
    throw new VerificationError(mismatch(where, "an adapter manifest", `something else (${error.message})`, AGAIN));
  }
}
