/** Strokes on a canvas, and a canvas as a file. */

import { el } from "./dom.js";

/**
 * @typedef {object} Stroke
 * @property {[number, number][]} points
 * @property {number} size
 * @property {boolean} erase
 * @property {HTMLCanvasElement} [area] painted as a whole
 * @property {Blob} [file] that the area is of
 */

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Stroke} stroke
 */
export function line(context, { points, size, erase, area }) {
  if (area) context.drawImage(area, 0, 0);
  context.globalCompositeOperation = erase ? "destination-out" : "source-over";
  context.lineWidth = size;
  context.beginPath();
  const [first, ...rest] = points;
  if (first === undefined) return;
  context.moveTo(...first);
  context.lineTo(first[0] + 0.01, first[1]);
  for (const point of rest) context.lineTo(...point);
  context.stroke();
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {number} x
 * @param {number} y
 * @param {number} radius
 */
export function ring(context, x, y, radius) {
  for (const [width, colour] of /** @type {[number, string][]} */ ([
    [4, "#fff"],
    [2, "#000"],
  ])) {
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.stroke();
  }
}

/**
 * @param {number} width
 * @param {number} height
 * @param {(context: CanvasRenderingContext2D) => void} paint
 * @returns {Promise<Blob>}
 */
export function exported(width, height, paint) {
  const canvas = el("canvas", { width, height });
  const context = canvas.getContext("2d");
  if (context) paint(context);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The browser has no memory for this picture."))), "image/png");
  });
}
