/** Tasks as tabs: arrows, Home and End go from one to the next, as in any list of tabs. */

import { el, part, title } from "./dom.js";

export class Tabs {
  /**
   * @param {HTMLElement} list
   * @param {(name: string) => void} onChoose
   */
  constructor(list, onChoose) {
    this.list = list;
    this.onChoose = onChoose;
    /** @type {HTMLButtonElement[]} */
    this.tabs = [];
    list.addEventListener("keydown", (event) => this.#key(event));
  }

  /** @param {string[]} names */
  show(names) {
    this.tabs = names.map((name) => {
      const attributes = { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "form", "data-name": name };
      const tab = el("button", attributes, title(name));
      tab.addEventListener("click", () => this.choose(name));
      return tab;
    });
    this.list.replaceChildren(...this.tabs);
  }

  /** @param {string} name */
  choose(name) {
    for (const tab of this.tabs) {
      const isChosen = tab.dataset.name === name;
      tab.setAttribute("aria-selected", String(isChosen));
      tab.tabIndex = isChosen ? 0 : -1;
      if (isChosen) part("form").setAttribute("aria-labelledby", tab.id);
      if (isChosen) tab.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
    this.onChoose(name);
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const at = this.tabs.indexOf(/** @type {HTMLButtonElement} */ (document.activeElement));
    const last = this.tabs.length - 1;
    const next = { ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at === 0 ? last : at - 1, Home: 0, End: last }[event.key];
    const tab = next === undefined ? undefined : this.tabs[next];
    if (at < 0 || tab === undefined) return;
    event.preventDefault();
    tab.focus();
    this.choose(tab.dataset.name ?? "");
  }
}
