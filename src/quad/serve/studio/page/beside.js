/** What can be laid beside a picture: the same with one thing changed, or another one of the history. */

import { el } from "./dom.js";

/** @typedef {import("./history.js").Entry} Entry */
/** @typedef {import("./backend.js").PictureRequest} PictureRequest */

const ADAPTER = "adapter:";

/**
 * @param {Entry} entry
 * @param {Entry[]} others
 * @param {string[]} adapters
 * @param {boolean} hasReference
 * @returns {Node[]} options, of values that `changed` knows or ids of the history
 */
export function besideOptions(entry, others, adapters, hasReference) {
  const used = Object.keys(entry.picture.adapters);
  const again = [el("option", { value: "seed" }, "another seed")];
  if (used.length > 0) again.push(el("option", { value: "base" }, "no adapter"));
  if (hasReference && !entry.request.reference) again.push(el("option", { value: "reference" }, "full precision"));
  for (const name of adapters) if (!used.includes(name)) again.push(el("option", { value: ADAPTER + name }, `${name} alone`));
  const options = others.map((one) => el("option", { value: one.id }, one.label));
  const before = options.length > 0 ? [el("optgroup", { label: "From the history" }, ...options)] : [];
  return [el("option", { value: "" }, "nothing"), el("optgroup", { label: "The same, with" }, ...again), ...before];
}

/**
 * @param {string} choice
 * @param {Entry} entry
 * @returns {PictureRequest | null} null for one of the history
 */
export function changed(choice, { request, picture }) {
  const same = { ...request, seed: picture.seed };
  if (choice === "seed") return { ...same, seed: crypto.getRandomValues(new Uint32Array(1))[0] ?? 0 };
  if (choice === "base") return { ...same, adapters: {} };
  if (choice === "reference") return { ...same, reference: true };
  return choice.startsWith(ADAPTER) ? { ...same, adapters: { [choice.slice(ADAPTER.length)]: 1 } } : null;
}
