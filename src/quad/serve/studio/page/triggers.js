/** What is one press away under the prompt: words that adapters wait for, and the settings that a picture's file holds. */

import { el, part, tell } from "./dom.js";
import { settingsOf } from "./png-text.js";

/**
 * @param {HTMLTextAreaElement} prompt
 * @param {import("./backend.js").AdapterCard[]} active
 */
export function showTriggers(prompt, active) {
  const missing = active.filter(({ trigger }) => trigger && !prompt.value.includes(trigger));
  const additions = missing.map(({ name, trigger }) => {
    const add = el("button", { type: "button", class: "link" }, `Add “${trigger}” for ${name}`);
    add.addEventListener("click", () => {
      prompt.value = [prompt.value.trim(), trigger].filter(Boolean).join(", ");
      showTriggers(prompt, active);
      prompt.focus();
    });
    return add;
  });
  part("triggers").replaceChildren(...additions);
}

/**
 * A picture that this page saved knows how it was made.
 *
 * @param {Blob} file
 * @param {(settings: import("./backend.js").PictureRequest) => void} onRestore
 */
export async function offerSettings(file, onRestore) {
  const settings = await settingsOf(file).catch(() => null);
  if (settings === null) return;
  const restore = el("button", { type: "button", class: "link" }, "Use the settings in this picture's file");
  restore.addEventListener("click", () => {
    try {
      onRestore(settings);
      restore.remove();
    } catch (error) {
      tell(error);
    }
  });
  part("triggers").replaceChildren(restore);
}
