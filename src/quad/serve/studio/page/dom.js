/** The page's elements: found by what they must be, and made in one line. */

/**
 * @template {Element} T
 * @param {string} selector
 * @param {new () => T} kind
 * @param {ParentNode} [root]
 * @returns {T}
 */
export function find(selector, kind, root = document) {
  const node = root.querySelector(selector);
  if (!(node instanceof kind)) throw new Error(`page: expected ${selector}, found none; load it again`);
  return node;
}

/** @param {string} id */
export const button = (id) => find(`#${id}`, HTMLButtonElement);
/** @param {string} id */
export const input = (id) => find(`#${id}`, HTMLInputElement);
/** @param {string} id */
export const select = (id) => find(`#${id}`, HTMLSelectElement);
/** @param {string} id */
export const part = (id) => find(`#${id}`, HTMLElement);

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, string | number | boolean | null>} [attributes] `true` stands without a value; `false` and null are left out
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null) node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children);
  return node;
}

/** @param {string} name of a task or sampler, as a heading has it */
export function title(name) {
  const words = name.replaceAll("-", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** @param {number} bytes */
export function bytes(bytes) {
  if (bytes < 1e6) return `${Math.max(1, Math.round(bytes / 1e3))} kB`;
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}

/** @param {number} value */
export const short = (value) => String(Number(value.toPrecision(3)));

/** A line for those who hear the page. @param {string} text */
export function announce(text) {
  part("live").textContent = text;
}

/** An error, or null for none any more. @param {unknown} error */
export function tell(error) {
  const line = part("message");
  line.hidden = error === null;
  line.textContent = error === null ? "" : error instanceof Error ? error.message : String(error);
}

/** @param {unknown} error */
export const isAbort = (error) => error instanceof DOMException && error.name === "AbortError";

/**
 * @param {Blob} blob
 * @param {string} name of the file that it is saved as
 */
export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
