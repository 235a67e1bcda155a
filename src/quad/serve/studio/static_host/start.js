/** The first script of an exported page: no other one runs before each file is known to be the one that was exported. */

/** @type {Record<string, { integrity: string, bytes: number }>} path below this folder -> the file as it was exported */
const PINNED = {};

const MOST_EAGER_BYTES = 1e6;
const RELOADED = "quad-reloaded";

try {
  if (!(await isServedHere())) await checkFiles();
  // The first visit came from the host itself; a second one comes from the service worker, with the headers that threads need.
  if (!crossOriginIsolated && navigator.serviceWorker?.controller && !sessionStorage.getItem(RELOADED)) {
    sessionStorage.setItem(RELOADED, "yes");
    location.reload();
  } else {
    await import(new URL("main.js", import.meta.url).href);
  }
} catch (error) {
  const line = document.createElement("p");
  line.setAttribute("role", "alert");
  line.textContent = error instanceof Error ? error.message : String(error);
  document.body.prepend(line);
}

/** Whether the service worker answers for this page's files; where there can be none, it does not. */
async function isServedHere() {
  const container = navigator.serviceWorker;
  if (container === undefined) return false;
  if (container.controller) return true;
  const taken = new Promise((resolve) => container.addEventListener("controllerchange", () => resolve(true), { once: true }));
  const registration = await container.register(new URL("sw.js", import.meta.url)).catch(() => null);
  // A page that was loaded past its service worker is not taken over.
  if (!registration || registration.active) return false;
  const installing = registration.installing ?? registration.waiting;
  const failed = new Promise((_, reject) => {
    installing?.addEventListener("statechange", () => {
      if (installing.state === "redundant")
        reject(new Error("page: expected the files that were exported, found others; export and upload it again"));
    });
  });
  return Promise.race([taken, failed]);
}

/** Compare every file that the page begins with, where no service worker does. */
async function checkFiles() {
  const eager = Object.entries(PINNED).filter(([, { bytes }]) => bytes <= MOST_EAGER_BYTES);
  await Promise.all(
    eager.map(async ([path, { integrity }]) => {
      const response = await fetch(new URL(path, import.meta.url), { integrity }).catch(() => null);
      if (!response?.ok) throw new Error(`${path}: expected the file that was exported, found none or another; export and upload it again`);
    }),
  );
}
