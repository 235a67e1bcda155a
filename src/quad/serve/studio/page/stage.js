/** The picture: on its way, done, beside another one; and how it was made. */

import { showCompare } from "./compare.js";
import { announce, bytes, el, find, part, short } from "./dom.js";
import { differences } from "./history.js";

/** @typedef {import("./history.js").Entry} Entry */

const TINY = 160; // pixels; smaller pictures are enlarged without smoothing

export class Stage {
  constructor() {
    this.frame = part("frame");
    this.image = find("#result", HTMLImageElement);
    this.preview = find("#preview", HTMLCanvasElement);
    this.progress = find("#progress", HTMLProgressElement);
  }

  /** @param {[number, number]} size width and height of the picture to come */
  begin([width, height]) {
    this.#aspect(width, height);
    const box = this.frame.getBoundingClientRect();
    const behavior = matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth";
    if (box.top > innerHeight - box.height / 2) this.frame.scrollIntoView({ block: "center", behavior });
    this.frame.classList.add("runs");
    part("empty").hidden = true;
    part("run").hidden = false;
    part("compare").hidden = true;
    this.progress.removeAttribute("value");
    part("progress-text").textContent = "Starting …";
    announce("Making the picture.");
  }

  /**
   * @param {number} done
   * @param {number} total
   */
  step(done, total) {
    this.progress.max = total;
    this.progress.value = done;
    part("progress-text").textContent = `Step ${done} of ${total}`;
    this.frame.style.setProperty("--blur", `${(1 - done / total).toFixed(2)}`);
  }

  /** @param {Blob | ImageBitmap} picture a coarse look */
  async look(picture) {
    const bitmap = picture instanceof Blob ? await createImageBitmap(picture) : picture;
    if (!this.frame.classList.contains("runs")) return;
    this.preview.width = bitmap.width;
    this.preview.height = bitmap.height;
    this.preview.getContext("2d")?.drawImage(bitmap, 0, 0);
    this.preview.hidden = false;
  }

  /** It is over, whatever came of it. */
  end() {
    this.frame.classList.remove("runs");
    part("run").hidden = true;
    this.preview.hidden = true;
    part("empty").hidden = !this.image.hidden;
  }

  /** @param {Entry} entry */
  show(entry) {
    const { picture, request } = entry;
    this.image.src = entry.url;
    this.image.alt = entry.label;
    this.image.hidden = false;
    this.image.decode().then(
      () => this.#aspect(this.image.naturalWidth, this.image.naturalHeight),
      () => {},
    );
    part("empty").hidden = true;
    part("compare").hidden = true;
    part("caption").hidden = false;
    const used = Object.entries(picture.adapters).map(([name, weight]) => `${name} ${short(weight)}`);
    const facts = [
      `seed ${picture.seed}`,
      picture.sampler.replace(":", ", ").concat(picture.sampler.includes(":") ? " steps" : ""),
      picture.guidance === null ? "" : `guidance ${short(picture.guidance)}`,
      used.join(" + ") || "no adapter",
      request.reference ? "full precision" : "",
      `${picture.seconds.toFixed(picture.seconds < 10 ? 2 : 0)} s`,
    ];
    part("facts").replaceChildren(...facts.filter(Boolean).map((fact) => el("span", {}, fact)));
    part("notes").replaceChildren(...picture.notes.map((note) => el("li", {}, note)));
    const stages = Object.entries(picture.timings).sort(([one], [other]) => Number(one === "total") - Number(other === "total"));
    const rows = stages.map(([stage, ms]) => [stage.replaceAll("_", " "), `${ms.toFixed(ms < 10 ? 1 : 0)} ms`]);
    if (picture.memory !== null) rows.push(["memory, at most so far", bytes(picture.memory)]);
    const body = find("#timings tbody", HTMLTableSectionElement);
    body.replaceChildren(...rows.map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name ?? ""), el("td", {}, value ?? ""))));
  }

  /**
   * @param {Entry} left
   * @param {Entry} right
   */
  compare(left, right) {
    const [ours, theirs] = differences(left, right);
    showCompare(part("compare"), { url: left.url, label: ours }, { url: right.url, label: theirs });
  }

  /** No picture any more. */
  clear() {
    this.image.hidden = true;
    this.image.removeAttribute("src");
    part("compare").hidden = true;
    part("caption").hidden = true;
    part("empty").hidden = false;
  }

  /**
   * @param {number} width
   * @param {number} height
   */
  #aspect(width, height) {
    this.frame.style.setProperty("--aspect", `${width} / ${height}`);
    this.frame.classList.toggle("tiny", Math.max(width, height) < TINY);
  }
}
