/** SHA-256 by WebCrypto, in hexadecimal digits. */

import { BackendError, mismatch, VerificationError } from "../core/errors.js";

/** Digest of some bytes. Raises a `BackendError` where the page has no WebCrypto. */
export async function sha256(content: Uint8Array): Promise<string> {
  const subtle = globalThis.crypto?.subtle;
  if (subtle === undefined) {
    throw new BackendError(mismatch("digests", "WebCrypto", "none", "serve the page by https or from localhost"));
  }
  const digest = new Uint8Array(await subtle.digest("SHA-256", content as Uint8Array<ArrayBuffer>));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Compare a digest with what was promised. Raises a `VerificationError` where they differ. */
export function checkDigest(where: string, found: string, expected: string, again: string): void {
  if (found !== expected) {
    const next = `the file was changed or damaged, ${again}`;
    throw new VerificationError(mismatch(where, `digest ${expected.slice(0, 8)}`, found.slice(0, 8), next));
  }
}
