// A server of folders by the first part of a path; "" takes what no other one does.
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";

const TYPES = { js: "text/javascript", mjs: "text/javascript", wasm: "application/wasm", html: "text/html" };

export async function serveFolders(folders, headers) {
  const server = createServer(async (request, response) => {
    const [, root, ...rest] = decodeURIComponent(new URL(request.url, "http://localhost").pathname).split("/");
    const known = Object.hasOwn(folders, root);
    const file = (known ? rest : [root, ...rest]).join("/") || "index.html";
    const content = await readFile(`${folders[known ? root : ""]}/${file}`).catch(() => undefined);
    response.writeHead(content ? 200 : 404, { ...headers, "Content-Type": TYPES[file.split(".").at(-1)] ?? "application/octet-stream" }).end(content);
  });
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  const close = () => {
    server.close();
    server.closeAllConnections();
  };
  return { address: `http://localhost:${server.address().port}/`, close };
}
