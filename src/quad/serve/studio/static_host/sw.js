/**
 * The service worker of an exported page: its files come from here once they are known to be those that were exported, so that the page
 * opens without a connection, and with the headers that threads need, which many hosts cannot send.
 */

/** @type {Record<string, { integrity: string, bytes: number }>} path below this folder -> the file as it was exported */
const PINNED = {};

/** Larger files are fetched when they are first used. */
const MOST_EAGER_BYTES = 1e6;
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};

const worker = /** @type {any} */ (self);
const scope = new URL("./", location.href).href;
const prefix = `quad-page ${scope} `;

worker.addEventListener("install", (/** @type {any} */ event) => {
  const eager = Object.entries(PINNED).filter(([, { bytes }]) => bytes <= MOST_EAGER_BYTES);
  event.waitUntil(Promise.all(eager.map(([path]) => stored(path))));
  // A page that runs keeps the files that it began with; the first one has none yet.
  if (worker.registration.active === null) worker.skipWaiting();
});

worker.addEventListener("activate", (/** @type {any} */ event) => {
  event.waitUntil(Promise.all([forgetOthers(), worker.clients.claim()]));
});

worker.addEventListener("fetch", (/** @type {any} */ event) => {
  const address = new URL(event.request.url);
  address.search = address.hash = "";
  if (!address.href.startsWith(scope)) return;
  const path = decodeURIComponent(address.href.slice(scope.length)) || "index.html";
  if (Object.hasOwn(PINNED, path)) event.respondWith(answer(path));
});

/** @param {string} path */
async function answer(path) {
  try {
    const response = await stored(path);
    const headers = new Headers(response.headers);
    for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
    return new Response(response.body, { headers });
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    return new Response(`${path}: expected the file that was exported, found none or another (${reason}); export and upload again`, {
      status: 502,
    });
  }
}

/**
 * A file that has the digest that it was exported with; the browser compares it.
 *
 * @param {string} path
 */
async function stored(path) {
  const cache = await caches.open(await cacheName());
  const address = new URL(path, scope).href;
  const known = await cache.match(address);
  if (known !== undefined) return known;
  const response = await fetch(address, { integrity: PINNED[path]?.integrity ?? "", cache: "no-cache" });
  if (!response.ok) throw new Error(`status ${response.status}`);
  // A full disk costs the next visit a download, not this one its page.
  await cache.put(address, response.clone()).catch(() => undefined);
  return response;
}

/** The cache of exactly these files. */
async function cacheName() {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(JSON.stringify(PINNED)));
  return prefix + [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Files of an older export at this address go. */
async function forgetOthers() {
  const own = await cacheName();
  const others = (await caches.keys()).filter((other) => other.startsWith(prefix) && other !== own);
  await Promise.all(others.map((other) => caches.delete(other)));
}
