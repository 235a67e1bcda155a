/** Places as callers name them: addresses, in Node paths, or what they have already. */

import { BackendError, InputError, mismatch, reasonOf } from "../core/errors.js";
import { type HttpOptions, HttpSource } from "./http_source.js";
import { type BundleSource, DirectorySource, isAddress, nodeFiles } from "./source.js";

/** The source of a bundle that lies there. */
export function sourceOf(place: string | URL | BundleSource, { cache, headers }: HttpOptions = {}): BundleSource {
  if (place instanceof URL)
    return place.protocol === "file:" ? new DirectorySource(decodeURIComponent(place.pathname)) : new HttpSource(place, { cache, headers });
  if (typeof place !== "string") return place;
  return isAddress(place) ? new HttpSource(place, { cache, headers }) : new DirectorySource(place);
}

/** All bytes of one file, wherever it is. */
export async function wholeFile(source: string | URL | Uint8Array | Blob): Promise<Uint8Array> {
  if (source instanceof Uint8Array) return source;
  if (source instanceof Blob) return new Uint8Array(await source.arrayBuffer());
  const place = String(source);
  try {
    if (!isAddress(place)) return new Uint8Array(await nodeFiles().readFile(place));
    const response = await fetch(new URL(place, globalThis.location?.href));
    if (response.ok) return new Uint8Array(await response.arrayBuffer());
    throw new InputError(mismatch(place, "a pack", `status ${response.status}`, "check the address"));
  } catch (error) {
    if (error instanceof InputError) throw error;
    if ((error as { code?: string }).code === "ENOENT") throw new InputError(mismatch(place, "a pack", "none", "check the path"));
    throw new BackendError(mismatch(place, "something that can be read", reasonOf(error), "try again"));
  }
}
