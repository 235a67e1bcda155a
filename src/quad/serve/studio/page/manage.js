/** Adapters installed and rolled back. */

import { BackendError } from "./backend.js";
import { announce, bytes, el, find, input, part, select, short, tell, title } from "./dom.js";

/** @typedef {import("./backend.js").Backend} Backend */

const SOURCES = { bundle: "in the bundle", installed: "installed", uploaded: "added here" };

export class Manage {
  /** @param {() => Promise<void>} onChange called when adapters or tasks may be others */
  constructor(onChange) {
    this.onChange = onChange;
    /** @type {Backend | null} */
    this.backend = null;
    find("#install", HTMLFormElement).addEventListener("submit", (event) => {
      event.preventDefault();
      this.#install().catch((error) => this.#refused(error));
    });
    input("install-file").addEventListener("change", () => {
      const file = input("install-file").files?.[0];
      const name =
        file?.name
          .replace(/\.[a-z]+$/i, "")
          .replace(/[^A-Za-z0-9._-]+/g, "-")
          .replace(/^[^A-Za-z0-9]+/, "") ?? "";
      if (!input("install-name").value) input("install-name").value = name;
    });
  }

  /**
   * @param {Backend} backend
   * @param {import("./backend.js").Card} card
   */
  show(backend, card) {
    this.backend = backend;
    part("install").hidden = !backend.capabilities.has("install");
    const tasks = card.tasks.map((task) => el("option", { value: task.name }, title(task.name)));
    select("install-like").replaceChildren(el("option", { value: "" }, "no task of its own"), ...tasks);
    const columns = ["Name", "From", "Rank", "Bits", "Size", "Headroom", "Says"];
    const head = el("tr", {}, ...columns.map((name) => el("th", { scope: "col" }, name)), el("td"));
    const rows = card.adapters.map((adapter) => this.#row(adapter));
    const table = el(
      "table",
      { class: "plain" },
      el("caption", { class: "unseen" }, "Adapters"),
      el("thead", {}, head),
      el("tbody", {}, ...rows),
    );
    part("installed").replaceChildren(el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Adapters" }, table));
  }

  /** @param {import("./backend.js").AdapterCard} adapter */
  #row(adapter) {
    const says = [adapter.trigger && `“${adapter.trigger}”`, adapter.sampler, adapter.guidance !== null && `guidance ${adapter.guidance}`];
    const cells = [
      SOURCES[adapter.source],
      String(adapter.rank),
      String(adapter.bits),
      bytes(adapter.bytes),
      adapter.headroom === null ? "any weight" : short(adapter.headroom),
      says.filter(Boolean).join(", "),
    ];
    const last = el("td");
    if (adapter.source === "uploaded" && this.backend?.capabilities.has("rollback")) {
      const back = el("button", { type: "button", class: "quiet small" }, adapter.previous ? "Roll back" : "Remove");
      back.setAttribute("aria-label", `${back.textContent} ${adapter.name}`);
      back.addEventListener("click", () => this.#rollback(adapter.name).catch((error) => this.#refused(error)));
      last.append(back);
    }
    return el("tr", {}, el("th", { scope: "row" }, adapter.name), ...cells.map((text) => el("td", {}, text)), last);
  }

  async #install() {
    const file = input("install-file").files?.[0];
    if (!file || !this.backend) return;
    const like = select("install-like").value;
    const name = input("install-name").value;
    this.#busy(true);
    try {
      const verdict = await this.backend.installAdapter(file, like ? { name, like } : { name });
      await this.onChange();
      find("#install", HTMLFormElement).reset();
      const facts = verdict.facts.map(([label, value]) => el("div", {}, el("dt", {}, label), el("dd", {}, value)));
      const notes = verdict.notes.map((note) => el("li", {}, note));
      part("verdict").replaceChildren(
        el("p", { class: "good" }, `${verdict.name} is installed.`),
        ...(facts.length > 0 ? [el("dl", { class: "facts-list" }, ...facts)] : []),
        ...(notes.length > 0 ? [el("ul", { class: "notes" }, ...notes)] : []),
      );
    } finally {
      this.#busy(false);
    }
  }

  /** @param {string} name */
  async #rollback(name) {
    await this.backend?.rollback(name);
    await this.onChange();
    const isThere = (await this.backend?.adapters())?.some((adapter) => adapter.name === name);
    const text = isThere ? `${name}: the version before runs again.` : `${name} is removed.`;
    part("verdict").replaceChildren(el("p", { class: "good" }, text));
    announce(text);
  }

  /** @param {unknown} error */
  #refused(error) {
    const line = error instanceof Error ? error.message : String(error);
    const reasons = error instanceof BackendError ? Object.entries(error.reasons) : [];
    const list = reasons.map(([name, reason]) => el("li", {}, el("code", {}, name), ` ${reason}`));
    part("verdict").replaceChildren(el("p", { class: "bad" }, line), ...(list.length > 0 ? [el("ul", { class: "notes" }, ...list)] : []));
    tell(null);
  }

  /** @param {boolean} busy */
  #busy(busy) {
    part("installing").hidden = !busy;
    if (busy) part("verdict").replaceChildren(el("p", {}, "Trying it on this bundle …"));
  }
}
