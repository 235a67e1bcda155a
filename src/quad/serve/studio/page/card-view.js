/** The bundle's card: what it is, its tasks, its adapters beside each other, its report. */

import { el, title } from "./dom.js";
import { heatMap } from "./heat-map.js";

/**
 * @param {import("./backend.js").Card} card
 * @param {() => void} onReport
 * @returns {Node[]}
 */
export function cardView(card, onReport) {
  /** @type {[string, string][]} */
  const facts = [
    ["Bundle", card.name],
    ["Target", card.target],
    ["Precision", card.precision],
    ["Engine", card.engine],
    ["Pictures", card.sizes.map(([width, height]) => `${width} × ${height}`).join(", ")],
    ...card.facts,
  ];
  const terms = facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
  const rows = card.tasks.map((task) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, title(task.name)),
      el("td", {}, task.adapter ?? "–"),
      el("td", {}, task.sampler.replace(":", ", ")),
      el("td", {}, task.mask ? "picture and mask" : task.picture ? "picture" : "words"),
    ),
  );
  const head = el("tr", {}, ...["Task", "Adapter", "Sampler, steps", "Reads"].map((name) => el("th", { scope: "col" }, name)));
  const tasks = el(
    "table",
    { class: "plain" },
    el("caption", { class: "unseen" }, "Tasks"),
    el("thead", {}, head),
    el("tbody", {}, ...rows),
  );
  const scroll = el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Tasks" }, tasks);
  /** @type {Node[]} */
  const parts = [el("dl", { class: "facts-list" }, ...terms), scroll, ...card.heatMaps.map(heatMap)];
  if (card.report !== null) {
    const save = el("button", { type: "button", class: "quiet" }, "Save the report");
    save.addEventListener("click", onReport);
    parts.push(el("p", {}, save));
  }
  return parts;
}
