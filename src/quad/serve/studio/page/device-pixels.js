/** Between picture files and pixels. */

/**
 * The pixels of a picture file, upright, as they are in the file: neither turned into the screen's colours nor multiplied by alpha.
 *
 * @param {Blob} file
 * @returns {Promise<ImageData>}
 */
export async function pixelsOf(file) {
  const picture = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const context = canvas(picture.width, picture.height);
  context.drawImage(picture, 0, 0);
  picture.close();
  return context.getImageData(0, 0, context.canvas.width, context.canvas.height);
}

/**
 * @param {{ data: Uint8ClampedArray<ArrayBuffer>, width: number, height: number }} pixels RGBA
 * @returns {Promise<Blob>} a PNG
 */
export async function pngOf({ data, width, height }) {
  const context = canvas(width, height);
  context.putImageData(new ImageData(data, width, height), 0, 0);
  return context.canvas.convertToBlob({ type: "image/png" });
}

/**
 * @param {number} width
 * @param {number} height
 */
function canvas(width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  if (context === null) throw new Error("device: expected a canvas, found none; close other pages and load this one again");
  return context;
}
