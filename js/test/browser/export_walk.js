// What `export.test.ts` has an exported page do: every task by the page's own backend, the first one again at the end.
globalThis.walk = async () => {
  const { openDeviceBackend } = await import(new URL("device-backend.js", document.baseURI).href);
  const { server, device } = await (await fetch("studio.json")).json();
  const backend = await openDeviceBackend(device, { token: null });
  const card = await backend.card();
  const canvas = new OffscreenCanvas(20, 20);
  const context = canvas.getContext("2d");
  context.fillRect(0, 0, 20, 20);
  context.fillStyle = "white";
  context.fillRect(3, 3, 9, 9);
  const image = await canvas.convertToBlob();
  const mask = image;
  const pictures = [];
  for (const task of [...card.tasks, card.tasks[0]]) {
    const given = { ...(task.picture && { image }), ...(task.mask && { mask }) };
    const { picture } = await backend.run({ task: task.name, prompt: "the car", seed: 3, steps: 2, ...given });
    const hash = await crypto.subtle.digest("SHA-256", await picture.arrayBuffer());
    pictures.push([...new Uint8Array(hash)].map((byte) => byte.toString(16).padStart(2, "0")).join(""));
  }
  backend.close();
  return { server, tasks: card.tasks.map(({ name }) => name), threads: Object.fromEntries(card.facts).Threads, pictures };
};
