/** A table of adapters by adapters, with a colour for each cell: numbers are in it, so that nobody depends on the colours. */

import { el } from "./dom.js";

/** @param {import("./backend.js").HeatMap} map */
export function heatMap(map) {
  const known = map.values.flat().filter((value) => value !== null);
  const most = Math.max(...known, 0);
  const head = el("tr", {}, el("td"), ...map.names.map((name) => el("th", { scope: "col" }, el("span", {}, name))));
  const rows = map.names.map((name, row) => {
    const cells = map.names.map((_, column) => cell(map.values[row]?.[column] ?? null, most));
    return el("tr", {}, el("th", { scope: "row" }, name), ...cells);
  });
  const table = el("table", { class: "heat" }, el("caption", {}, map.title), el("thead", {}, head), el("tbody", {}, ...rows));
  return el(
    "figure",
    { class: "heat-map" },
    el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": map.title }, table),
    el("figcaption", {}, map.note),
  );
}

/**
 * @param {number | null} value
 * @param {number} most
 */
function cell(value, most) {
  if (value === null) return el("td", { class: "unknown" }, "–");
  const share = most > 0 ? value / most : 0;
  const node = el("td", {}, shown(value));
  node.style.setProperty("--share", `${Math.round(100 * share)}%`);
  return node;
}

/** @param {number} value */
function shown(value) {
  if (value === 0) return "0";
  return Math.abs(value) < 0.001 ? value.toExponential(0) : String(Number(value.toPrecision(2)));
}
