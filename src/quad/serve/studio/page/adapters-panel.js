/** Adapters as chips; each that is on has a slider for its weight, with its headroom. */

import { el, short, title } from "./dom.js";

const USUAL_MOST = 2;

export class AdaptersPanel {
  /**
   * @param {HTMLElement} chips
   * @param {HTMLElement} sliders
   * @param {() => void} onChange
   */
  constructor(chips, sliders, onChange) {
    this.chips = chips;
    this.sliders = sliders;
    this.onChange = onChange;
    /** @type {import("./backend.js").AdapterCard[]} */
    this.cards = [];
    /** @type {Map<string, number>} */
    this.weights = new Map();
  }

  /** @param {import("./backend.js").AdapterCard[]} cards */
  setAdapters(cards) {
    this.cards = cards;
    for (const name of this.weights.keys()) if (!cards.some((card) => card.name === name)) this.weights.delete(name);
    this.#render();
  }

  /** @param {Record<string, number>} weights */
  set(weights) {
    const names = new Set(this.cards.map((card) => card.name));
    this.weights = new Map(Object.entries(weights).filter(([name]) => names.has(name)));
    this.#render();
  }

  /** @returns {Record<string, number>} */
  value() {
    return Object.fromEntries(this.weights);
  }

  /** Cards of those that are on. */
  get active() {
    return this.cards.filter((card) => this.weights.has(card.name));
  }

  #render() {
    this.chips.replaceChildren(...this.cards.map((card) => this.#chip(card)));
    this.sliders.replaceChildren(...this.active.map((card) => this.#slider(card)));
  }

  /** @param {import("./backend.js").AdapterCard} card */
  #chip(card) {
    const isOn = this.weights.has(card.name);
    const chip = el("button", { type: "button", class: "chip", "aria-pressed": String(isOn), "data-name": card.name }, title(card.name));
    chip.addEventListener("click", () => {
      if (isOn) this.weights.delete(card.name);
      else this.weights.set(card.name, 1);
      this.#render();
      /** @type {HTMLElement | null} */ (this.chips.querySelector(`[data-name="${CSS.escape(card.name)}"]`))?.focus();
      this.onChange();
    });
    return chip;
  }

  /** @param {import("./backend.js").AdapterCard} card */
  #slider(card) {
    const weight = this.weights.get(card.name) ?? 1;
    const most = Math.max(USUAL_MOST, Math.min(4, Math.ceil(card.headroom ?? 0)), Math.ceil(weight));
    const id = `weight-${card.name}`;
    const range = el("input", { type: "range", id, min: 0, max: most, step: 0.05, value: weight, "aria-describedby": `${id}-headroom` });
    const output = el("output", { for: id }, weight.toFixed(2));
    const headroom = el("span", { class: "headroom", id: `${id}-headroom` });
    const row = el("div", { class: "field slider" }, el("label", { for: id }, `Strength of ${card.name}`), output, range, headroom);
    const show = () => {
      const value = range.valueAsNumber;
      const isOver = card.headroom !== null && value > card.headroom;
      output.textContent = value.toFixed(2);
      row.classList.toggle("over", isOver);
      headroom.textContent = headroomText(card.headroom, isOver);
    };
    show();
    range.addEventListener("input", () => {
      this.weights.set(card.name, range.valueAsNumber);
      show();
      this.onChange();
    });
    return row;
  }
}

/**
 * @param {number | null} headroom
 * @param {boolean} isOver
 */
function headroomText(headroom, isOver) {
  if (headroom === null) return "any weight";
  return isOver ? `more than its headroom of ${short(headroom)}: something may be clipped` : `headroom up to ${short(headroom)}`;
}
