/** A server of folders by the first part of a path, each with headers, and one that only a token opens. */

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";

const TYPES: Readonly<Record<string, string>> = {
  js: "text/javascript",
  mjs: "text/javascript",
  wasm: "application/wasm",
  html: "text/html",
};

/** The folder of a prefix; `token`, who asks has to bring. */
export interface Folder {
  readonly path: string;
  readonly token?: string;
}

export interface FolderServer {
  readonly address: string;
  close(): void;
}

/** Serve until closed; the prefix "" takes what no other one does, and every page may talk to this server alone. */
export async function serveFolders(
  folders: Readonly<Record<string, Folder>>,
  headers: Readonly<Record<string, string>>,
): Promise<FolderServer> {
  const server = createServer(async (request, response) => {
    const [, root, ...rest] = decodeURIComponent(new URL(request.url!, "http://localhost").pathname).split("/");
    const known = Object.hasOwn(folders, root!);
    const folder = folders[known ? root! : ""]!;
    const file = (known ? rest : [root, ...rest]).join("/") || "index.html";
    for (const [name, value] of Object.entries(headers)) response.setHeader(name, value);
    if (folder.token !== undefined && request.headers.authorization !== `Bearer ${folder.token}`) return response.writeHead(401).end();
    response.setHeader("Content-Type", TYPES[file.split(".").at(-1)!] ?? "application/octet-stream");
    const content = await readFile(`${folder.path}/${file}`).catch(() => undefined);
    return content === undefined ? response.writeHead(404).end() : response.end(content);
  });
  await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
  const stop = (): void => {
    server.close();
    server.closeAllConnections();
  };
  return { address: `http://localhost:${(server.address() as AddressInfo).port}/`, close: stop };
}
