/** Packs on offer in verified metadata: their terms, those withdrawn, and which one a name stands for; as `quad.delivery.offer`. */

import { adapterName } from "../core/adapter_manifest.js";
import { DecodeError, type Decoder, integer, listOf, mapOf, matching, maybe, optional, required, struct, text } from "../core/decode.js";
import { CompatibilityError, mismatch, UsageError, VerificationError } from "../core/errors.js";
import { quoted } from "../core/text.js";

/** The release of quad whose packs this runtime reads. */
export const RELEASE = "0.2.0";
const LARGEST_PACK = 2 ** 33;
const PARENTS = ["graph", "slots", "profile"] as const;

/** What a pack requires. */
export interface Terms {
  readonly name: string;
  readonly version: number;
  readonly slots: string;
  readonly profile: string;
  readonly at_least: string;
  readonly below: string;
  readonly graph: string | undefined;
}

/** A pack that must not run any more. */
interface Revocation {
  readonly name: string;
  readonly version: number;
  readonly sha256: string;
  readonly reason: string;
}

/** One pack in a repository. */
export interface Offer {
  readonly terms: Terms;
  readonly sha256: string;
  readonly size: number;
}

const sha256 = matching(/^[0-9a-f]{64}$/);
const release = matching(/^[0-9]{1,6}(\.[0-9]{1,6}){0,3}$/);
const version = integer(1, 2 ** 31);
const terms: Decoder<Terms> = struct<Terms>({
  name: required(adapterName),
  version: required(version),
  slots: required(sha256),
  profile: required(sha256),
  at_least: required(release),
  below: required(release),
  graph: maybe(sha256),
});
const target = struct<{ readonly custom: Terms; readonly hashes: { readonly sha256: string }; readonly length: number }>({
  custom: required(terms),
  hashes: required(struct<{ readonly sha256: string }>({ sha256: required(sha256) })),
  length: required(integer(0, LARGEST_PACK)),
});
const revocation = struct<Revocation>({
  name: required(adapterName),
  version: required(version),
  sha256: required(sha256),
  reason: optional(text, ""),
});
const catalogue = struct<{ readonly targets: Readonly<Record<string, unknown>>; readonly quad_revoked: readonly Revocation[] }>({
  targets: required(mapOf((value) => value)),
  quad_revoked: optional(listOf(revocation), []),
});

/** Where a pack lies below the repository: made of checked names and a digest alone. */
export function locationOf({ terms: own, sha256: digest }: Offer): string {
  return `${own.name}/${digest}.${own.version}.qpack`;
}

/**
 * The pack that `NAME:VERSION` or `NAME` stands for: without a version, the newest that fits.
 *
 * Raises a `VerificationError` where it was withdrawn or the list is none of quad's, a `CompatibilityError` where none fits, a `UsageError`
 * where there is none.
 */
export function chooseOffer(signed: unknown, specifier: string, parents: Readonly<Record<string, string>>): Offer {
  const { targets, quad_revoked: revoked } = decoded("targets.json", () => catalogue(signed, "$"));
  const withdrawn = new Set(revoked.map((entry) => entry.sha256));
  const offers = Object.entries(targets).map(([path, value]) => offerOf(path, value));
  const [name, ...rest] = specifier.split(":");
  const number = rest.length ? rest.join(":") : undefined;
  const isMeant = (own: { readonly name: string; readonly version: number }): boolean => {
    return own.name === name && (number === undefined || number === String(own.version));
  };
  const matches = offers
    .filter((offer) => isMeant(offer.terms) && !withdrawn.has(offer.sha256))
    .toSorted((a, b) => b.terms.version - a.terms.version);
  const fitting = matches.find((offer) => misfit(offer.terms, parents) === undefined);
  if (fitting !== undefined) return fitting;
  const [newest] = matches;
  if (newest !== undefined) throw new CompatibilityError(misfit(newest.terms, parents)!);
  const gone = revoked.findLast(isMeant);
  if (gone !== undefined) {
    const found = `version ${gone.version} revoked${gone.reason ? `: ${gone.reason}` : ""}`;
    throw new VerificationError(
      mismatch(`adapter ${quoted(specifier)}`, "a pack on offer", found, "take another version, or ask the publisher"),
    );
  }
  const labels = offers.filter((offer) => !withdrawn.has(offer.sha256)).map(({ terms: own }) => `${own.name}:${own.version}`);
  throw new UsageError(mismatch("adapter", `one of ${labels.sort().join(", ") || "nothing"}`, quoted(specifier), "choose one of these"));
}

/** Refuse a pack that is not what its signed terms say. */
export function checkPromise(own: Terms, name: string, parents: Readonly<Record<string, string>>): void {
  const where = `adapter ${own.name}:${own.version}`;
  if (name !== own.name) throw new VerificationError(mismatch(where, own.name, quoted(name), "it was not used, ask the publisher"));
  for (const parent of PARENTS) {
    const found = parents[parent] ?? "none";
    if (own[parent] === undefined || own[parent] === found) continue;
    const expected = `${parent} ${own[parent].slice(0, 8)}`;
    throw new VerificationError(mismatch(where, expected, `${found.slice(0, 8)} (a pack of another graph)`, "ask the publisher"));
  }
}

function offerOf(path: string, value: unknown): Offer {
  const { custom, hashes, length } = decoded(quoted(path), () => target(value, "$"));
  const expected = `${custom.name}/${custom.version}.qpack`;
  if (path !== expected) {
    throw new VerificationError(mismatch("targets.json", `the path ${expected}`, `${quoted(path)} (path escape)`, "ask the publisher"));
  }
  return { terms: custom, sha256: hashes.sha256, size: length };
}

/** Why a pack cannot run here; undefined where it can. */
function misfit(own: Terms, parents: Readonly<Record<string, string>>): string | undefined {
  const where = `adapter ${own.name}:${own.version}`;
  for (const parent of PARENTS) {
    const found = parents[parent];
    if (own[parent] === undefined || (found === undefined && parent === "graph") || own[parent] === found) continue;
    const expected = `${parent} ${own[parent].slice(0, 8)}`;
    return mismatch(where, expected, `${parent} ${(found ?? "none").slice(0, 8)} of this bundle`, "it is a pack for another graph");
  }
  if (compared(own.at_least, RELEASE) <= 0 && compared(RELEASE, own.below) < 0) return undefined;
  return mismatch(where, `quad ${own.at_least} or later, before ${own.below}`, RELEASE, "update the page, or take another version");
}

/** Negative where the first release is older, 0 where both are the same but for zeros at the end. */
function compared(a: string, b: string): number {
  const [left, right] = [a, b].map((text) => text.split(".").map(Number)) as [number[], number[]];
  const places = Array.from({ length: Math.max(left.length, right.length) }, (_, place) => (left[place] ?? 0) - (right[place] ?? 0));
  return places.find((difference) => difference !== 0) ?? 0;
}

function decoded<T>(where: string, decode: () => T): T {
  try {
    return decode();
  } catch (error) {
    if (!(error instanceof DecodeError)) throw error;
    throw new VerificationError(
      mismatch(where, "packs of quad's in their signed form", `something else: ${error.message}`, "ask the publisher"),
    );
  }
}
