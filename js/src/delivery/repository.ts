/**
 * A signed pack from a repository of quad's (docs/delivery.md): The Update Framework's metadata first, then the pack, by its signed digest.
 *
 * The client keeps what it has verified; what it stored stands only when a whole update went well, but for roots, each of which stands for
 * itself. It leaves early where the timestamp is the one it knows, so that the age of what it knows is looked at here.
 */

import { type FileBackend, TUFClient } from "@freedomofpress/tuf-browser";
import { type ByteCache, defaultCache } from "../bundle/cache.js";
import { checkDigest, sha256 } from "../bundle/digest.js";
import { HttpSource } from "../bundle/http_source.js";
import { BackendError, InputError, mismatch, reasonOf, VerificationError } from "../core/errors.js";
import { quoted } from "../core/text.js";
import { chooseOffer, locationOf, type Terms } from "./offer.js";

/** A pack by its name in a repository. */
export interface SignedPack {
  /** The address of the repository, above `metadata/` and `targets/`. */
  readonly repository: string;
  /** The text of `1.root.json`, which has come another way than from there. */
  readonly root: string;
  /** `NAME`, its newest version that fits, or `NAME:VERSION`. */
  readonly pack: string;
}

/** A pack whose bytes have the digest that was signed. */
export interface VerifiedPack {
  readonly where: string;
  readonly content: Uint8Array;
  readonly terms: Terms;
}

type Metadata = NonNullable<Awaited<ReturnType<FileBackend["read"]>>>;

const ROOT = "root.json";
const FRESH = ["timestamp.json", "snapshot.json", "targets.json"];
const UNREACHABLE = /fetch failed|Failed to fetch|NetworkError|Load failed/i;

/**
 * Verify a repository's metadata, choose a pack, and fetch it.
 *
 * Raises a `VerificationError` where a signature, version, date or digest is not as it must be, a `CompatibilityError` where no pack fits, a
 * `UsageError` where there is none of that name, a `BackendError` where nobody answers.
 */
export async function fetchSigned(
  source: SignedPack,
  parents: Readonly<Record<string, string>>,
  cache: ByteCache = defaultCache(),
): Promise<VerifiedPack> {
  const base = new URL(`${source.repository.replace(/\/+$/, "")}/`, globalThis.location?.href);
  if (base.username || base.password || base.search) {
    throw new InputError(mismatch("repository", "an address without a user, a password or a query", "one with it", "leave it out"));
  }
  const signed = await update(base, source.root, cache);
  const offer = chooseOffer(signed, source.pack, parents);
  const where = `${base.href}targets/${locationOf(offer)}`;
  const packs = new HttpSource(`${base.href}targets/`, { cache });
  const content = await packs.read(locationOf(offer), { sha256: offer.sha256, size: offer.size });
  if (content === undefined) throw new BackendError(mismatch(where, "the pack that was signed", "none", "ask the publisher"));
  const digest = await sha256(content);
  if (digest !== offer.sha256) await packs.forget(offer.sha256);
  checkDigest(where, digest, offer.sha256, "it was not used (tampered pack)");
  return { where, content, terms: offer.terms };
}

/** The signed part of the list of packs, after everything before it was verified. */
async function update(base: URL, root: string, cache: ByteCache): Promise<unknown> {
  const key = `trust ${await sha256(new TextEncoder().encode(root))} ${base.href}`;
  const trust = new Trust(await cache.get(key));
  const client = new TUFClient(`${base.href}metadata/`, root, "quad", `${base.href}targets/`, { backend: trust });
  try {
    await client.updateTUF();
    trust.keepAll();
  } catch (error) {
    const reason = reasonOf(error);
    if (UNREACHABLE.test(reason)) throw new BackendError(mismatch(base.href, "an answer", reason, "check the address and try again"));
    throw new VerificationError(mismatch(base.href, "metadata signed by the keys of its root", reason, "nothing was used"));
  } finally {
    await cache.put(key, trust.content()).catch(() => undefined);
  }
  for (const name of FRESH) {
    const expires = trust.signed(name)?.expires;
    if (expires === undefined || !(Date.parse(expires) > Date.now())) {
      const found = expires === undefined ? "none" : `one that expired ${expires} (freeze)`;
      throw new VerificationError(mismatch(base.href, `${name} that has not expired`, found, "nothing was used, ask the publisher"));
    }
  }
  return trust.signed("targets.json");
}

/** Metadata by file name: what counts already, and what an update that is under way has written. */
class Trust implements FileBackend {
  #kept: Record<string, string>;
  #written: Record<string, string>;

  constructor(content: Uint8Array | undefined) {
    const stored: unknown = content === undefined ? {} : JSON.parse(new TextDecoder().decode(content));
    this.#kept = stored as Record<string, string>;
    this.#written = { ...this.#kept };
  }

  async read(key: string): Promise<Metadata | undefined> {
    const text = this.#written[nameOf(key)];
    return text === undefined ? undefined : JSON.parse(text);
  }

  async write(key: string, value: Metadata): Promise<void> {
    this.#put(key, JSON.stringify(value));
  }

  async writeRaw(key: string, value: Uint8Array): Promise<void> {
    this.#put(key, new TextDecoder().decode(value));
  }

  async delete(key: string): Promise<void> {
    delete this.#written[nameOf(key)];
    delete this.#kept[nameOf(key)];
  }

  signed(name: string): { readonly expires?: string } | undefined {
    const text = this.#written[name];
    return text === undefined ? undefined : JSON.parse(text).signed;
  }

  keepAll(): void {
    this.#kept = { ...this.#written };
  }

  content(): Uint8Array {
    return new TextEncoder().encode(JSON.stringify(this.#kept));
  }

  #put(key: string, text: string): void {
    const name = nameOf(key);
    this.#written[name] = text;
    if (name === ROOT) this.#kept[name] = text;
  }
}

/** The client's keys are `NAMESPACE/FILE`. */
function nameOf(key: string): string {
  const name = key.split("/").at(-1) ?? "";
  if (![ROOT, ...FRESH].includes(name))
    throw new VerificationError(mismatch("metadata", "one of the four roles", quoted(name), "nothing was used"));
  return name;
}
