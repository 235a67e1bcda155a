/** Pictures of this tab with how they were made. They live in the page's memory alone: a reload forgets them. */

import { el, part, title } from "./dom.js";

const MOST = 60;

/**
 * @typedef {object} Entry
 * @property {string} id
 * @property {import("./backend.js").PictureRequest} request
 * @property {import("./backend.js").Picture} picture
 * @property {string} url of the picture, as long as it is in the history
 * @property {string} label
 */

export class History {
  /** @param {(entry: Entry) => void} onChoose */
  constructor(onChoose) {
    this.onChoose = onChoose;
    /** @type {Entry[]} the latest first */
    this.entries = [];
    this.count = 0;
  }

  /**
   * @param {import("./backend.js").PictureRequest} request
   * @param {import("./backend.js").Picture} picture
   * @returns {Entry}
   */
  add(request, picture) {
    const entry = {
      id: String(++this.count),
      request,
      picture,
      url: URL.createObjectURL(picture.picture),
      label: labelOf(request, picture),
    };
    this.entries.unshift(entry);
    for (const old of this.entries.splice(MOST)) URL.revokeObjectURL(old.url);
    this.render(entry.id);
    return entry;
  }

  /** @param {string} id */
  find(id) {
    return this.entries.find((entry) => entry.id === id) ?? null;
  }

  clear() {
    for (const { url } of this.entries) URL.revokeObjectURL(url);
    this.entries = [];
    this.render(null);
  }

  /** @param {string | null} current */
  render(current) {
    part("history").hidden = this.entries.length === 0;
    const items = this.entries.map((entry) => {
      const isCurrent = entry.id === current;
      const choice = el("button", { type: "button", title: entry.label, "aria-current": isCurrent ? "true" : null });
      choice.append(el("img", { src: entry.url, alt: `${entry.label}: show it and its settings` }));
      choice.addEventListener("click", () => this.onChoose(entry));
      return el("li", {}, choice);
    });
    part("entries").replaceChildren(...items);
  }
}

/**
 * @param {import("./backend.js").PictureRequest} request
 * @param {import("./backend.js").Picture} picture
 */
export function labelOf(request, picture) {
  const { task, prompt, adapters, seed, model } = aspects(request, picture);
  return [task, prompt, adapters, seed, request.reference ? model : ""].filter(Boolean).join(", ");
}

/**
 * What tells two pictures apart, in a few words for each.
 *
 * @param {Entry} left
 * @param {Entry} right
 * @returns {[string, string]}
 */
export function differences(left, right) {
  const [ours, theirs] = [aspects(left.request, left.picture), aspects(right.request, right.picture)];
  const names = /** @type {(keyof typeof ours)[]} */ (Object.keys(ours)).filter((name) => ours[name] !== theirs[name]);
  if (names.length === 0) return ["one", "the same again"];
  return [names.map((name) => ours[name]).join(", "), names.map((name) => theirs[name]).join(", ")];
}

/**
 * @param {import("./backend.js").PictureRequest} request
 * @param {import("./backend.js").Picture} picture
 */
function aspects(request, picture) {
  const adapters = Object.entries(picture.adapters).map(([name, weight]) => (weight === 1 ? name : `${name} ${weight}`));
  return {
    task: title(request.task),
    prompt: request.prompt,
    adapters: adapters.join(" + ") || "no adapter",
    sampler: picture.sampler.replace(":", ", "),
    guidance: picture.guidance === null ? "" : `guidance ${picture.guidance}`,
    seed: `seed ${picture.seed}`,
    model: request.reference ? "full precision" : "quantized",
  };
}
