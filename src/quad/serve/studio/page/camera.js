/** A picture by the device's camera; the camera is on while its dialog is open. */

import { BackendError } from "./backend.js";
import { button, find } from "./dom.js";

/** @returns {Promise<Blob | null>} null where none was taken */
export async function openCamera() {
  const dialog = find("#camera-dialog", HTMLDialogElement);
  const video = find("#video", HTMLVideoElement);
  /** @type {MediaStream} */
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio: false });
  } catch {
    throw new BackendError("The browser gives no camera to this page. Allow it, or open a file.", "InputError");
  }
  video.srcObject = stream;
  dialog.showModal();
  try {
    return await taken(dialog, video);
  } finally {
    for (const track of stream.getTracks()) track.stop();
    video.srcObject = null;
    dialog.close();
  }
}

/**
 * @param {HTMLDialogElement} dialog
 * @param {HTMLVideoElement} video
 * @returns {Promise<Blob | null>}
 */
function taken(dialog, video) {
  return new Promise((resolve) => {
    const done = new AbortController();
    /** @param {Blob | null} blob */
    const end = (blob) => {
      done.abort();
      resolve(blob);
    };
    dialog.addEventListener("close", () => end(null), { signal: done.signal });
    button("shoot").addEventListener(
      "click",
      () => {
        const canvas = document.createElement("canvas");
        canvas.width = video.videoWidth;
        canvas.height = video.videoHeight;
        canvas.getContext("2d")?.drawImage(video, 0, 0);
        canvas.toBlob(end, "image/png");
      },
      { signal: done.signal },
    );
  });
}
