/** The picture that a task reads: dropped, pasted, chosen, drawn or taken by the camera; and its mask. */

import { BackendError } from "./backend.js";
import { openCamera } from "./camera.js";
import { announce, button, find, input, part, tell } from "./dom.js";
import { Painter } from "./paint.js";

const TYPES = ["image/png", "image/jpeg", "image/webp"];
const HINTS = {
  mask: "Paint over what is to change. Keys: arrows move the brush, space puts it down and lifts it, Ctrl+Z undoes.",
  draw: "Draw with the brush. Keys: arrows move it, space puts it down and lifts it, Ctrl+Z undoes.",
  show: "",
};

export class PictureInput {
  /** @param {(file: Blob) => void} onPicture called with each file that is opened */
  constructor(onPicture) {
    this.onPicture = onPicture;
    this.painter = new Painter(part("canvas-frame"), () => this.#tools());
    /** @type {Blob | null} */
    this.file = null;
    /** @type {import("./backend.js").TaskCard | null} */
    this.task = null;
    this.isDrawing = false;
    /** @type {[number, number]} */
    this.sheet = [512, 512];
    this.#listen();
  }

  /** @param {import("./backend.js").TaskCard} task */
  setTask(task) {
    this.task = task;
    part("picture").hidden = !task.picture;
    button("draw").hidden = task.mask;
    button("open-camera").hidden = !navigator.mediaDevices?.getUserMedia;
    if (task.picture && !task.mask && this.file === null && !this.isDrawing && task.name.includes("sketch")) this.draw();
    else this.#show();
  }

  /** @returns {Promise<{ image?: Blob, mask?: Blob }>} as the task reads them */
  async value() {
    if (!this.task?.picture) return {};
    if (this.file === null && !this.isDrawing)
      throw new BackendError("This task reads a picture: drop one, or open or draw it.", "UsageError");
    const image = this.isDrawing || this.file === null ? await this.painter.drawing() : this.file;
    if (!this.task.mask) return { image };
    if (!this.painter.isPainted) throw new BackendError("Paint over the part of the picture that is to change.", "UsageError");
    return { image, mask: await this.painter.mask() };
  }

  /**
   * @param {Blob} file
   * @param {Blob} [mask] of it, white where it is to change
   */
  async open(file, mask) {
    if (!TYPES.includes(file.type)) throw new BackendError("This is no PNG, JPEG or WebP picture.", "InputError");
    /** @type {ImageBitmap} */
    let bitmap;
    try {
      bitmap = await createImageBitmap(file);
    } catch {
      throw new BackendError("This picture is damaged: the browser cannot read it.", "InputError");
    }
    this.file = file;
    this.isDrawing = false;
    this.painter.open(bitmap, this.sheet);
    if (mask) this.painter.setMask(mask, await createImageBitmap(mask));
    this.#show();
    announce(`Picture opened, ${bitmap.width} by ${bitmap.height} pixels.`);
    this.onPicture(file);
  }

  /** A blank sheet, or the picture that is there, to draw on. */
  draw() {
    if (this.file === null && !this.isDrawing) this.painter.open(null, this.sheet);
    this.isDrawing = true;
    this.#show();
  }

  #show() {
    const isThere = this.file !== null || this.isDrawing;
    part("drop").hidden = isThere;
    part("editor").hidden = !isThere;
    const mode = this.task?.mask ? "mask" : this.isDrawing ? "draw" : "show";
    this.painter.setMode(mode);
    part("tools").hidden = mode === "show";
    part("editor-hint").textContent = HINTS[mode];
    part("picture-title").textContent = this.task?.mask ? "Picture and mask" : "Picture";
    this.#tools();
  }

  #tools() {
    const isEmpty = this.painter.strokes[this.painter.mode].length === 0;
    for (const name of ["undo", "clear"]) {
      button(name).setAttribute("aria-disabled", String(isEmpty));
    }
  }

  #listen() {
    const file = input("file");
    /** @param {Blob | null | undefined} blob */
    const take = (blob) => {
      if (blob) this.open(blob).then(() => tell(null), tell);
    };
    for (const name of ["drop", "open-file"]) button(name).addEventListener("click", () => file.click());
    file.addEventListener("change", () => {
      take(file.files?.[0]);
      file.value = "";
    });
    button("draw").addEventListener("click", () => this.draw());
    button("open-camera").addEventListener("click", () => openCamera().then(take, tell));
    document.addEventListener("paste", (event) => {
      const pasted = [...(event.clipboardData?.files ?? [])].find((one) => TYPES.includes(one.type));
      if (pasted && this.task?.picture) take(pasted);
    });
    document.addEventListener("dragover", (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      document.body.classList.add("drags");
    });
    document.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) document.body.classList.remove("drags");
    });
    document.addEventListener("drop", (event) => {
      document.body.classList.remove("drags");
      const dropped = event.dataTransfer?.files[0];
      if (!dropped) return;
      event.preventDefault();
      if (this.task?.picture) take(dropped);
      else this.onPicture(dropped);
    });
    for (const name of ["brush", "eraser"]) {
      button(name).addEventListener("click", () => {
        this.painter.erase = name === "eraser";
        button("brush").setAttribute("aria-pressed", String(name === "brush"));
        button("eraser").setAttribute("aria-pressed", String(name === "eraser"));
      });
    }
    button("undo").addEventListener("click", () => this.painter.undo());
    button("clear").addEventListener("click", () => this.painter.clear());
    const size = find("#brush-size", HTMLInputElement);
    const setSize = () => {
      this.painter.size = (size.valueAsNumber / 512) * Math.max(this.painter.canvas.width, this.painter.canvas.height, 64);
    };
    size.addEventListener("input", setSize);
    this.painter.canvas.addEventListener("pointerdown", setSize, { capture: true });
    this.painter.canvas.addEventListener("focus", setSize);
  }
}
