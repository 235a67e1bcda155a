/** Sampler, steps, guidance, seed, size: an empty field is the task's own, or what the adapters bring. */

import { button, el, find, input, part, select } from "./dom.js";

/** @typedef {Omit<import("./backend.js").PictureRequest, "task" | "prompt" | "adapters" | "image" | "mask">} SettingValues */

export class Settings {
  /** @param {import("./backend.js").Card} card */
  constructor(card) {
    /** @type {import("./backend.js").TaskCard | null} */
    this.task = null;
    this.strengthIsSet = false;
    this.negative = find("#negative", HTMLTextAreaElement);
    this.setCard(card);
    button("dice").addEventListener("click", () => this.newSeed());
    button("lock").addEventListener("click", () => this.keepSeed(!this.keepsSeed));
    input("seed").addEventListener("input", () => this.keepSeed(true));
    button("defaults").addEventListener("click", () => this.task && this.setTask(this.task));
    input("strength").addEventListener("input", () => {
      this.strengthIsSet = true;
      this.#showStrength();
    });
  }

  /** @param {import("./backend.js").Card} card */
  setCard(card) {
    const names = card.samplers.map((name) => el("option", { value: name }, name));
    select("sampler").replaceChildren(el("option", { value: "" }, "The task's own"), ...names);
    const sizes = card.sizes.map(([width, height]) => el("option", { value: `${width}x${height}` }, `${width} × ${height}`));
    select("size").replaceChildren(...sizes);
    part("size-field").hidden = sizes.length < 2;
  }

  /** @param {import("./backend.js").TaskCard} task */
  setTask(task) {
    this.task = task;
    const [own] = select("sampler").options;
    if (own) own.textContent = `The task's own, ${task.sampler.replace(":", ", ")} steps`;
    select("sampler").value = "";
    for (const id of ["steps", "guidance", "image-guidance"]) input(id).value = "";
    input("steps").placeholder = String(task.steps);
    input("guidance").placeholder = String(task.guidance);
    input("image-guidance").placeholder = String(task.imageGuidance ?? "");
    part("image-guidance-field").hidden = task.imageGuidance === null;
    part("strength-field").hidden = task.strength === null;
    input("strength").valueAsNumber = task.strength ?? 1;
    this.strengthIsSet = false;
    this.#showStrength();
  }

  get keepsSeed() {
    return button("lock").getAttribute("aria-pressed") === "true";
  }

  /** @param {boolean} keep */
  keepSeed(keep) {
    button("lock").setAttribute("aria-pressed", String(keep));
  }

  newSeed() {
    const [seed] = crypto.getRandomValues(new Uint32Array(1));
    input("seed").value = String(seed);
    this.keepSeed(false);
  }

  /** @returns {SettingValues} */
  value() {
    /** @type {SettingValues} */
    const values = { seed: Math.max(0, Math.trunc(input("seed").valueAsNumber || 0)) };
    if (this.negative.value) values.negativePrompt = this.negative.value;
    if (select("sampler").value) values.sampler = select("sampler").value;
    if (input("steps").value) values.steps = input("steps").valueAsNumber;
    if (input("guidance").value) values.guidance = input("guidance").valueAsNumber;
    if (this.task?.imageGuidance !== null && input("image-guidance").value) values.imageGuidance = input("image-guidance").valueAsNumber;
    if (this.task?.strength !== null && this.strengthIsSet) values.strength = input("strength").valueAsNumber;
    const size = select("size").selectedIndex > 0 ? select("size").value.split("x").map(Number) : [];
    if (size.length === 2) values.size = /** @type {[number, number]} */ (size);
    return values;
  }

  /** @param {SettingValues} values */
  restore(values) {
    this.negative.value = values.negativePrompt ?? "";
    select("sampler").value = values.sampler ?? "";
    input("steps").value = String(values.steps ?? "");
    input("guidance").value = String(values.guidance ?? "");
    input("image-guidance").value = String(values.imageGuidance ?? "");
    this.strengthIsSet = values.strength !== undefined;
    input("strength").valueAsNumber = values.strength ?? this.task?.strength ?? 1;
    this.#showStrength();
    if (values.size) select("size").value = values.size.join("x");
    input("seed").value = String(values.seed);
    this.keepSeed(true);
  }

  #showStrength() {
    find("#strength-value", HTMLOutputElement).textContent = `${Math.round(input("strength").valueAsNumber * 100)} %`;
  }
}
