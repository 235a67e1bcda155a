/** The studio over one backend: what is asked for, what is made, what was made. */

import { AdaptersPanel } from "./adapters-panel.js";
import { besideOptions, changed } from "./beside.js";
import { cardView } from "./card-view.js";
import { announce, button, download, find, isAbort, part, select, tell } from "./dom.js";
import { History } from "./history.js";
import { Manage } from "./manage.js";
import { PictureInput } from "./picture-input.js";
import { withSettings } from "./png-text.js";
import { fetchReport } from "./server-backend.js";
import { Settings } from "./settings.js";
import { Stage } from "./stage.js";
import { Tabs } from "./tabs.js";
import { offerSettings, showTriggers } from "./triggers.js";

/** @typedef {import("./backend.js").Backend} Backend */
/** @typedef {import("./backend.js").Card} Card */
/** @typedef {import("./backend.js").PictureRequest} PictureRequest */
/** @typedef {import("./history.js").Entry} Entry */

const FIRST = "text-to-image";

export class Studio {
  /** @param {string | null} token of the server, for its report */
  constructor(token) {
    this.token = token;
    /** @type {Backend | null} */
    this.backend = null;
    /** @type {Card | null} */
    this.card = null;
    /** @type {Settings | null} */
    this.settings = null;
    /** @type {AbortController | null} */
    this.running = null;
    /** @type {Entry | null} */
    this.current = null;
    this.prompt = find("#prompt", HTMLTextAreaElement);
    this.stage = new Stage();
    this.history = new History((entry) => void this.restore(entry).catch(tell));
    this.tabs = new Tabs(part("tasks"), (name) => this.#setTask(name));
    this.picture = new PictureInput((file) => void offerSettings(file, (settings) => this.#restoreRequest(settings)));
    this.adapters = new AdaptersPanel(part("chips"), part("weights"), () => this.#showTriggers());
    this.manage = new Manage(() => this.refresh());
    this.taskName = "";
    this.#listen();
  }

  /** @param {Backend} backend to make pictures by from now on; what is on the page stays */
  async use(backend) {
    this.backend = backend;
    await this.refresh();
    const { card } = this;
    if (card === null) return;
    part("where").textContent = `${card.name} · ${card.precision} · ${backend.label}`;
    document.title = `${card.name} · quad studio`;
    for (const name of ["open-card", "open-adapters"]) button(name).hidden = false;
  }

  /** The bundle's card anew, with its tasks and adapters. */
  async refresh() {
    if (this.backend === null) return;
    const card = await this.backend.card();
    this.card = card;
    this.settings ??= new Settings(card);
    this.settings.setCard(card);
    this.picture.sheet = card.sizes[0] ?? [512, 512];
    this.adapters.setAdapters(card.adapters);
    part("adapters").hidden = card.adapters.length === 0;
    const names = card.tasks.map((task) => task.name);
    this.tabs.show([...names.filter((name) => name === FIRST), ...names.filter((name) => name !== FIRST)]);
    const task = card.tasks.find(({ name }) => name === this.taskName) ?? card.tasks.find(({ name }) => name === FIRST) ?? card.tasks[0];
    if (task) this.tabs.choose(task.name);
    this.manage.show(this.backend, card);
  }

  /** @param {string} name */
  #setTask(name) {
    const task = this.card?.tasks.find((one) => one.name === name);
    if (!task || !this.settings) return;
    const isAnother = this.taskName !== name;
    this.taskName = name;
    this.picture.setTask(task);
    if (isAnother) {
      this.settings.setTask(task);
      this.adapters.set(task.adapter === null ? {} : { [task.adapter]: 1 });
    }
    this.#showTriggers();
  }

  /** @returns {Promise<PictureRequest>} as the page has it now */
  async #request() {
    if (this.settings === null) throw new Error("The bundle is not open yet.");
    const given = await this.picture.value();
    return { task: this.taskName, prompt: this.prompt.value, adapters: this.adapters.value(), ...given, ...this.settings.value() };
  }

  /** Make the picture that the page asks for. */
  async make() {
    if (this.running !== null) return;
    if (this.settings && !this.settings.keepsSeed) this.settings.newSeed();
    try {
      await this.#run(await this.#request());
    } catch (error) {
      tell(error);
    }
  }

  /**
   * @param {PictureRequest} request
   * @returns {Promise<Entry | null>} null where it was cancelled or failed
   */
  async #run(request) {
    const { backend } = this;
    if (backend === null || this.running !== null) return null;
    tell(null);
    this.running = new AbortController();
    this.#busy(true);
    this.stage.begin(request.size ?? this.card?.sizes[0] ?? [512, 512]);
    try {
      const onPreview = backend.capabilities.has("preview")
        ? (/** @type {Blob | ImageBitmap} */ look) => void this.stage.look(look)
        : undefined;
      const picture = await backend.run(request, {
        signal: this.running.signal,
        onProgress: (done, total) => this.stage.step(done, total),
        ...(onPreview ? { onPreview } : {}),
      });
      const entry = this.history.add(request, picture);
      this.#show(entry);
      announce(`The picture is done, in ${picture.seconds.toFixed(1)} seconds.`);
      return entry;
    } catch (error) {
      if (isAbort(error)) announce("Cancelled.");
      else tell(error);
      return null;
    } finally {
      this.running = null;
      this.stage.end();
      this.#busy(false);
    }
  }

  /** @param {boolean} busy */
  #busy(busy) {
    button("make").hidden = busy;
    button("cancel").hidden = !busy;
    if (busy) button("cancel").focus({ preventScroll: true });
    else if (document.activeElement === document.body || document.activeElement === button("cancel"))
      button("make").focus({ preventScroll: true });
  }

  /** @param {Entry} entry */
  #show(entry) {
    this.current = entry;
    this.stage.show(entry);
    this.history.render(entry.id);
    const others = this.history.entries.filter((one) => one !== entry);
    const names = this.card?.adapters.map(({ name }) => name) ?? [];
    select("beside").replaceChildren(...besideOptions(entry, others, names, this.backend?.capabilities.has("compare") ?? false));
  }

  /** Lay another picture beside the one that is shown. @param {string} choice */
  async #compare(choice) {
    const left = this.current;
    if (left === null) return;
    if (choice === "") {
      this.stage.show(left);
      return;
    }
    const request = changed(choice, left);
    const right = request ? await this.#run(request) : this.history.find(choice);
    if (right === null) return;
    this.#show(left);
    select("beside").value = right.id;
    this.stage.compare(left, right);
  }

  /** Show a picture again, with the settings that made it. @param {Entry} entry */
  async restore(entry) {
    const { image, mask } = entry.request;
    this.#show(entry);
    this.#restoreRequest(entry.request);
    if (image) await this.picture.open(image, mask);
    announce("Its settings are back.");
  }

  /** @param {PictureRequest} request */
  #restoreRequest(request) {
    if (!this.card?.tasks.some((task) => task.name === request.task)) throw new Error(`This bundle has no task ${request.task}.`);
    this.tabs.choose(request.task);
    this.prompt.value = request.prompt;
    this.adapters.set(request.adapters ?? {});
    this.settings?.restore(request);
    this.#showTriggers();
  }

  #showTriggers() {
    showTriggers(this.prompt, this.adapters.active);
  }

  async #save() {
    if (this.current === null) return;
    const { request, picture } = this.current;
    const { image: _image, mask: _mask, ...words } = request;
    const settings = { ...words, seed: picture.seed };
    download(await withSettings(picture.picture, settings), `${request.task}-${picture.seed}.png`);
  }

  #listen() {
    find("#form", HTMLFormElement).addEventListener("submit", (event) => {
      event.preventDefault();
      void this.make();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) void this.make();
      if (event.key === "Escape" && !document.querySelector("dialog[open]")) this.running?.abort();
    });
    this.prompt.addEventListener("input", () => this.#showTriggers());
    button("cancel").addEventListener("click", () => this.running?.abort());
    button("save").addEventListener("click", () => void this.#save());
    button("forget").addEventListener("click", () => {
      this.history.clear();
      this.current = null;
      this.stage.clear();
    });
    button("reuse").addEventListener("click", () => {
      if (this.current === null) return;
      const task = this.card?.tasks.find(({ name }) => name === this.taskName);
      const reads = task?.picture ? task : this.card?.tasks.find(({ picture }) => picture);
      if (reads && reads !== task) this.tabs.choose(reads.name);
      this.picture.open(this.current.picture.picture).then(() => part("picture").scrollIntoView({ block: "nearest" }), tell);
    });
    select("beside").addEventListener("change", () => void this.#compare(select("beside").value).catch(tell));
    button("open-card").addEventListener("click", () => this.#openDialog("card-dialog"));
    button("open-adapters").addEventListener("click", () => this.#openDialog("adapters-dialog"));
    for (const dialog of document.querySelectorAll("dialog")) {
      find(".close", HTMLButtonElement, dialog).addEventListener("click", () => dialog.close());
    }
  }

  /** @param {string} id */
  #openDialog(id) {
    const { card } = this;
    if (card === null) return;
    if (id === "card-dialog") part("card").replaceChildren(...cardView(card, () => void this.#saveReport(card.report).catch(tell)));
    find(`#${id}`, HTMLDialogElement).showModal();
  }

  /** @param {string | null} path */
  async #saveReport(path) {
    if (path !== null) download(await fetchReport(path, this.token), "report.html");
  }
}
