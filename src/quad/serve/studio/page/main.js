/** The page from its first line: which backend there is, then the studio over it. */

import { BackendError } from "./backend.js";
import { announce, bytes, find, input, part, tell } from "./dom.js";
import { openServerBackend } from "./server-backend.js";
import { Studio } from "./studio.js";
import { takeToken } from "./token.js";

/** @typedef {import("./backend.js").Backend} Backend */

const token = takeToken();

/** @returns {Promise<import("./backend.js").StudioConfig>} */
async function readConfig() {
  const response = await fetch("studio.json");
  if (!response.ok) throw new BackendError("studio.json is not beside this page. Export or start it again.", "InputError");
  return response.json();
}

/**
 * @param {import("./backend.js").DevicePlace} place
 * @returns {Promise<Backend>}
 */
async function openDevice(place) {
  const path = "./device-backend.js";
  const { openDeviceBackend } = /** @type {{ openDeviceBackend: import("./backend.js").OpenDeviceBackend }} */ (await import(path));
  const bar = find("#loading-progress", HTMLProgressElement);
  return openDeviceBackend(place, {
    token,
    onProgress: (file, loaded, total) => {
      part("loading-text").textContent = `${file}, ${bytes(loaded)} of ${bytes(total)}`;
      bar.max = Math.max(1, total);
      bar.value = loaded;
    },
  });
}

/**
 * @template T
 * @param {string} text
 * @param {() => Promise<T>} work
 * @returns {Promise<T>}
 */
async function whileLoading(text, work) {
  part("loading").hidden = false;
  part("loading-text").textContent = text;
  find("#loading-progress", HTMLProgressElement).removeAttribute("value");
  try {
    return await work();
  } finally {
    part("loading").hidden = true;
  }
}

async function start() {
  const { studio, config, server } = await whileLoading("Opening the bundle …", async () => {
    const config = await readConfig();
    const server = config.server ? await openServerBackend(token) : null;
    const backend = server ?? (config.device ? await openDevice(config.device) : null);
    if (backend === null) throw new BackendError("studio.json names nothing that makes pictures. Export it again.", "InputError");
    const studio = new Studio(token);
    await studio.use(backend);
    return { studio, config, server };
  });
  part("studio").hidden = false;
  if (server !== null && config.device !== null) offerDevice(studio, server, config.device);
}

/**
 * @param {Studio} studio
 * @param {Backend} server
 * @param {import("./backend.js").DevicePlace} place
 */
function offerDevice(studio, server, place) {
  /** @type {Backend | null} */
  let device = null;
  const toggle = input("device");
  part("device-switch").hidden = false;
  toggle.addEventListener("change", async () => {
    toggle.disabled = true;
    try {
      if (toggle.checked) device ??= await whileLoading("Bringing the bundle to this device …", () => openDevice(place));
      await studio.use(toggle.checked && device ? device : server);
      announce(toggle.checked ? "Pictures are made on this device now." : "Pictures are made by the server now.");
      tell(null);
    } catch (error) {
      toggle.checked = false;
      tell(error);
    } finally {
      toggle.disabled = false;
    }
  });
}

start().catch(tell);
