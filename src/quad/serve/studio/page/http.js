/** Calls of the API: the token in a header, errors as they are told, events as they come. */

import { BackendError } from "./backend.js";

/** @typedef {{ kind: string, data: any }} ServerEvent */

export class Api {
  /** @param {string | null} token */
  constructor(token) {
    this.token = token;
  }

  /**
   * @param {string} path relative to the page
   * @param {RequestInit} [init]
   * @returns {Promise<Response>} a good one
   */
  async call(path, init = {}) {
    const headers = new Headers(init.headers);
    if (this.token !== null) headers.set("Authorization", `Bearer ${this.token}`);
    /** @type {Response} */
    let response;
    try {
      response = await fetch(path, { ...init, headers, cache: "no-store", credentials: "omit" });
    } catch (error) {
      if (error instanceof DOMException) throw error;
      throw new BackendError("The server does not answer. Is quad studio still running?", "BackendError");
    }
    if (!response.ok) throw await refusal(response);
    return response;
  }

  /**
   * @param {string} path
   * @param {RequestInit} [init]
   * @returns {Promise<any>}
   */
  async json(path, init) {
    return (await this.call(path, init)).json();
  }

  /**
   * @param {string} path
   * @param {object} body
   * @param {AbortSignal} [signal]
   * @returns {Promise<any>}
   */
  post(path, body, signal) {
    const init = { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
    return this.json(path, signal ? { ...init, signal } : init);
  }

  /**
   * @param {string} path
   * @param {AbortSignal} [signal]
   * @returns {AsyncGenerator<ServerEvent>}
   */
  async *events(path, signal) {
    const response = await this.call(path, signal ? { signal } : {});
    if (response.body === null) return;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const events = (rest + value).split("\n\n");
      rest = events.pop() ?? "";
      for (const text of events) {
        const event = parseEvent(text);
        if (event !== null) yield event;
      }
    }
  }
}

/**
 * @param {string} text the lines of one event
 * @returns {ServerEvent | null} null for a comment
 */
export function parseEvent(text) {
  /** @type {Record<string, string>} */
  const fields = {};
  for (const line of text.split("\n")) {
    const colon = line.indexOf(": ");
    if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 2);
  }
  return fields.event && fields.data ? { kind: fields.event, data: JSON.parse(fields.data) } : null;
}

/** @param {Response} response */
async function refusal(response) {
  if (response.status === 401) {
    return new BackendError("This tab has no token of the server. Open the address that quad studio printed.", "InputError");
  }
  try {
    const body = await response.json();
    return new BackendError(body.error, body.kind, body.reasons);
  } catch {
    return new BackendError(`The server answered ${response.status}.`, "BackendError");
  }
}

/**
 * @param {Blob} blob
 * @returns {Promise<string>}
 */
export function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onerror = () => reject(reader.error);
    reader.onload = () => resolve(String(reader.result).split(",")[1] ?? "");
    reader.readAsDataURL(blob);
  });
}

/**
 * @param {string} text base64 of a PNG
 * @returns {Blob}
 */
export function png(text) {
  return new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], { type: "image/png" });
}
