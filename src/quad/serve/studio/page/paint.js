/** Strokes of a brush over a picture or a blank sheet: a mask, or a drawing. Positions and sizes are in pixels of the canvas. */

import { el } from "./dom.js";
import { exported, line, ring } from "./strokes.js";

/** @typedef {"mask" | "draw" | "show"} PaintMode */
/** @typedef {import("./strokes.js").Stroke | "clear"} Stroke */

const LEAST = 512; // of the canvas' longer side
const LONGEST = 1024;
const TINY = 160; // smaller pictures are enlarged without smoothing
const INK = "#1b1b1b";
const MASK_TINT = "rgb(200 85 61 / 0.62)";

export class Painter {
  /**
   * @param {HTMLElement} frame that the canvas goes into
   * @param {() => void} onChange after each stroke
   */
  constructor(frame, onChange) {
    this.canvas = el("canvas", { tabindex: 0, role: "application", "aria-describedby": "editor-hint" });
    this.layer = document.createElement("canvas");
    frame.append(this.canvas);
    this.onChange = onChange;
    /** @type {PaintMode} */
    this.mode = "show";
    /** @type {Record<PaintMode, Stroke[]>} */
    this.strokes = { mask: [], draw: [], show: [] };
    /** @type {ImageBitmap | null} */
    this.background = null;
    this.size = 24;
    this.erase = false;
    /** @type {{ x: number, y: number, down: boolean } | null} */
    this.cursor = null;
    this.#listen();
  }

  /**
   * @param {ImageBitmap | null} picture null for a blank sheet
   * @param {[number, number]} sheet width and height of a blank one
   */
  open(picture, sheet) {
    this.background = picture;
    const [width, height] = picture ? [picture.width, picture.height] : sheet;
    const longest = Math.max(width, height);
    const scale = picture && longest > LEAST ? Math.min(1, LONGEST / longest) : LEAST / longest;
    for (const canvas of [this.canvas, this.layer]) {
      canvas.width = Math.max(1, Math.round(width * scale));
      canvas.height = Math.max(1, Math.round(height * scale));
    }
    this.strokes = { mask: [], draw: [], show: [] };
    this.cursor = null;
    this.render();
  }

  /** @param {PaintMode} mode */
  setMode(mode) {
    this.mode = mode;
    this.cursor = null;
    this.canvas.tabIndex = mode === "show" ? -1 : 0;
    this.canvas.classList.toggle("paints", mode !== "show");
    if (mode === "show") this.canvas.setAttribute("role", "img");
    else this.canvas.setAttribute("role", "application");
    const label = { mask: "Mask over the picture", draw: "Drawing", show: "The picture" }[mode];
    this.canvas.setAttribute("aria-label", label);
    this.render();
  }

  /**
   * A mask that was painted before.
   *
   * @param {Blob} file
   * @param {ImageBitmap} mask white where it is painted
   */
  setMask(file, mask) {
    const area = el("canvas", { width: this.canvas.width, height: this.canvas.height });
    const context = area.getContext("2d");
    if (context === null) return;
    context.drawImage(mask, 0, 0, area.width, area.height);
    const pixels = context.getImageData(0, 0, area.width, area.height);
    for (let at = 0; at < pixels.data.length; at += 4) pixels.data[at + 3] = pixels.data[at] ?? 0;
    context.putImageData(pixels, 0, 0);
    this.strokes.mask = [{ points: [], size: 0, erase: false, area, file }];
  }

  /** Anything is painted. */
  get isPainted() {
    const strokes = this.strokes[this.mode];
    return strokes.slice(strokes.lastIndexOf("clear") + 1).some((stroke) => stroke !== "clear" && !stroke.erase);
  }

  undo() {
    this.strokes[this.mode].pop();
    this.#changed();
  }

  clear() {
    if (this.strokes[this.mode].length > 0) this.strokes[this.mode].push("clear");
    this.#changed();
  }

  /** @returns {Promise<Blob>} white where it is painted, black elsewhere, of the picture's size */
  mask() {
    const only = this.strokes.mask.length === 1 ? this.strokes.mask[0] : undefined;
    if (only !== undefined && only !== "clear" && only.file) return Promise.resolve(only.file);
    const { width, height } = this.background ?? this.canvas;
    this.#paintLayer("mask", "#fff");
    return exported(width, height, (context) => {
      context.fillStyle = "#000";
      context.fillRect(0, 0, width, height);
      context.drawImage(this.layer, 0, 0, width, height);
    });
  }

  /** @returns {Promise<Blob>} the picture with the drawing on it */
  drawing() {
    return exported(this.canvas.width, this.canvas.height, (context) => this.#paintSheet(context));
  }

  render() {
    const context = this.canvas.getContext("2d");
    if (context === null) return;
    if (this.mode === "mask") {
      this.#paintBackground(context);
      this.#paintLayer("mask", MASK_TINT);
      context.drawImage(this.layer, 0, 0);
    } else {
      this.#paintSheet(context);
    }
    if (this.cursor !== null) ring(context, this.cursor.x, this.cursor.y, this.size / 2);
  }

  /** @param {CanvasRenderingContext2D} context */
  #paintBackground(context) {
    context.fillStyle = "#fff";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    if (this.background) context.imageSmoothingEnabled = Math.max(this.background.width, this.background.height) >= TINY;
    if (this.background) context.drawImage(this.background, 0, 0, this.canvas.width, this.canvas.height);
  }

  /** @param {CanvasRenderingContext2D} context */
  #paintSheet(context) {
    this.#paintBackground(context);
    this.#paintLayer("draw", INK);
    context.drawImage(this.layer, 0, 0);
  }

  /**
   * @param {PaintMode} mode
   * @param {string} colour of all strokes together, where they cross too
   */
  #paintLayer(mode, colour) {
    const context = this.layer.getContext("2d");
    if (context === null) return;
    context.globalCompositeOperation = "source-over";
    context.clearRect(0, 0, this.layer.width, this.layer.height);
    context.lineCap = context.lineJoin = "round";
    const strokes = this.strokes[mode];
    for (const stroke of strokes.slice(strokes.lastIndexOf("clear") + 1)) if (stroke !== "clear") line(context, stroke);
    context.globalCompositeOperation = "source-in";
    context.fillStyle = colour;
    context.fillRect(0, 0, this.layer.width, this.layer.height);
  }

  #listen() {
    this.canvas.addEventListener("pointerdown", (event) => {
      if (this.mode === "show" || event.button !== 0) return;
      this.canvas.setPointerCapture(event.pointerId);
      this.cursor = null;
      this.#begin(this.#position(event));
      event.preventDefault();
      this.canvas.focus({ preventScroll: true });
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (!this.canvas.hasPointerCapture(event.pointerId)) return;
      const moves = event.getCoalescedEvents?.() ?? [];
      for (const move of moves.length > 0 ? moves : [event]) this.#extend(this.#position(move));
      this.render();
    });
    for (const end of ["pointerup", "pointercancel"]) this.canvas.addEventListener(end, () => this.onChange());
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    this.canvas.addEventListener("blur", () => {
      this.cursor = null;
      this.render();
    });
  }

  /** Arrows move the brush, space puts it down and lifts it. @param {KeyboardEvent} event */
  #key(event) {
    if (this.mode === "show") return;
    if ((event.ctrlKey || event.metaKey) && event.key === "z") {
      event.preventDefault();
      this.undo();
      return;
    }
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], " ": [0, 0] }[event.key];
    if (move === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.cursor ??= { x: this.canvas.width / 2, y: this.canvas.height / 2, down: false };
    const step = event.shiftKey ? this.size * 2 : Math.max(2, this.size / 2);
    this.cursor.x = Math.min(this.canvas.width, Math.max(0, this.cursor.x + (move[0] ?? 0) * step));
    this.cursor.y = Math.min(this.canvas.height, Math.max(0, this.cursor.y + (move[1] ?? 0) * step));
    if (event.key === " ") {
      this.cursor.down = !this.cursor.down;
      if (this.cursor.down) this.#begin([this.cursor.x, this.cursor.y]);
    } else if (this.cursor.down) {
      this.#extend([this.cursor.x, this.cursor.y]);
    }
    this.#changed();
  }

  /** @param {[number, number]} point */
  #begin(point) {
    this.strokes[this.mode].push({ points: [point], size: this.size, erase: this.erase });
    this.render();
  }

  /** @param {[number, number]} point */
  #extend(point) {
    const stroke = this.strokes[this.mode].at(-1);
    if (stroke !== undefined && stroke !== "clear") stroke.points.push(point);
  }

  #changed() {
    this.render();
    this.onChange();
  }

  /**
   * @param {PointerEvent} event
   * @returns {[number, number]}
   */
  #position(event) {
    const box = this.canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * this.canvas.width) / box.width, ((event.clientY - box.top) * this.canvas.height) / box.height];
  }
}
