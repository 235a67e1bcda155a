/** Two pictures one over the other, with a divider that slides: by pointer, touch or arrow keys. */

import { el } from "./dom.js";

/** @typedef {{ url: string, label: string }} Side */

/**
 * @param {HTMLElement} place
 * @param {Side} left
 * @param {Side} right
 */
export function showCompare(place, left, right) {
  const range = el("input", {
    type: "range",
    min: 0,
    max: 100,
    step: 0.5,
    value: 50,
    "aria-label": `Divider: ${left.label}, ${right.label}`,
  });
  const show = () => {
    place.style.setProperty("--split", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${Math.round(range.valueAsNumber)} % ${left.label}`);
  };
  range.addEventListener("input", show);
  place.replaceChildren(
    el("img", { class: "right", src: right.url, alt: right.label }),
    el("img", { class: "left", src: left.url, alt: left.label }),
    el("span", { class: "bar", "aria-hidden": "true" }),
    range,
    el("span", { class: "tag left", "aria-hidden": "true" }, left.label),
    el("span", { class: "tag right", "aria-hidden": "true" }, right.label),
  );
  show();
  place.hidden = false;
}
