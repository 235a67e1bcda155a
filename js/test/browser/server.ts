/** A server of one page, its worker, the engine and a bundle; the page may talk to nobody else. */

import { readFile } from "node:fs/promises";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const ENGINE = fileURLToPath(new URL("../../node_modules/onnxruntime-web/dist/", import.meta.url));
const TYPES: Readonly<Record<string, string>> = {
  js: "text/javascript",
  mjs: "text/javascript",
  wasm: "application/wasm",
  html: "text/html",
};
const POLICY = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval' blob:; worker-src 'self' blob:; connect-src 'self'";

/** Serves until it is closed; `answer` is what the page sends. */
export interface Site {
  readonly address: string;
  readonly answer: Promise<Record<string, unknown>>;
  close(): void;
}

export async function serveSite(bundle: string, isolated: boolean): Promise<Site> {
  const scripts = { "/page.js": await script("page.ts"), "/worker.js": await script("../../src/worker.ts") };
  let told: (answer: Record<string, unknown>) => void;
  const answer = new Promise<Record<string, unknown>>((resolve) => {
    told = resolve;
  });
  const server = createServer((request, response) => {
    void respond(request, response).catch(() => response.writeHead(404).end());
  });
  const respond = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const { pathname } = new URL(request.url!, "http://localhost");
    response.setHeader("Content-Type", TYPES[pathname.split(".").at(-1)!] ?? "application/octet-stream");
    response.setHeader("Content-Security-Policy", POLICY);
    if (isolated) response.setHeader("Cross-Origin-Opener-Policy", "same-origin");
    if (isolated) response.setHeader("Cross-Origin-Embedder-Policy", "require-corp");
    if (pathname === "/answer") {
      told(JSON.parse(Buffer.concat(await request.toArray()).toString()));
      response.end();
    } else if (pathname === "/") {
      response
        .setHeader("Content-Type", "text/html")
        .end('<!doctype html><meta charset="utf-8"><script type="module" src="/page.js"></script>');
    } else if (Object.hasOwn(scripts, pathname)) {
      response.end(scripts[pathname as keyof typeof scripts]);
    } else {
      const [, root, ...rest] = pathname.split("/");
      const content = await readFile(`${root === "ort" ? ENGINE : `${bundle}/`}${decodeURIComponent(rest.join("/"))}`);
      const [begin, end] =
        /bytes=(\d+)-(\d+)/
          .exec(request.headers.range ?? "")
          ?.slice(1)
          .map(Number) ?? [];
      if (end !== undefined) response.writeHead(206).end(content.subarray(begin, end + 1));
      else response.end(content);
    }
  };
  await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
  return { address: `http://localhost:${(server.address() as AddressInfo).port}/`, answer, close: () => stop(server) };
}

function stop(server: Server): void {
  server.close();
  server.closeAllConnections();
}

async function script(entry: string): Promise<string> {
  const { outputFiles } = await build({
    entryPoints: [fileURLToPath(new URL(entry, import.meta.url))],
    bundle: true,
    format: "esm",
    platform: "browser",
    target: "es2022",
    write: false,
  });
  return outputFiles[0]!.text;
}
