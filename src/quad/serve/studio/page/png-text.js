/** Settings inside a picture's file: an iTXt chunk of PNG, in JSON, that the page reads again when the file is dropped on it. */

const KEYWORD = "quad:request";
const SIGNATURE = 8;
const SIGNED = "caBX"; // content credentials: a file that has them must stay as it is

/**
 * @param {Blob} png
 * @param {object} settings
 * @returns {Promise<Blob>} with the settings in it; a signed one as it was
 */
export async function withSettings(png, settings) {
  const data = new Uint8Array(await png.arrayBuffer());
  const all = chunks(data);
  const end = all.find(({ type }) => type === "IEND");
  if (end === undefined || all.some(({ type }) => type === SIGNED)) return png;
  const text = new TextEncoder().encode(`${KEYWORD}\0\0\0\0\0${JSON.stringify(settings)}`);
  return new Blob([data.slice(0, end.begin), chunk("iTXt", text), data.slice(end.begin)], { type: "image/png" });
}

/**
 * @param {Blob} file
 * @returns {Promise<any>} null where it has none
 */
export async function settingsOf(file) {
  const data = new Uint8Array(await file.arrayBuffer());
  for (const { type, body } of chunks(data)) {
    const text = type === "iTXt" ? new TextDecoder().decode(body) : "";
    if (text.startsWith(`${KEYWORD}\0`)) {
      try {
        return JSON.parse(text.slice(KEYWORD.length + 5));
      } catch {
        return null;
      }
    }
  }
  return null;
}

/**
 * @param {Uint8Array} data
 * @returns {{ type: string, begin: number, body: Uint8Array }[]} none where it is no PNG
 */
function chunks(data) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const all = [];
  if (data.length < SIGNATURE || view.getUint32(0) !== 0x89504e47) return [];
  for (let at = SIGNATURE; at + 12 <= data.length; ) {
    const length = view.getUint32(at);
    if (at + 12 + length > data.length) break;
    const type = String.fromCharCode(...data.subarray(at + 4, at + 8));
    all.push({ type, begin: at, body: data.subarray(at + 8, at + 8 + length) });
    at += 12 + length;
  }
  return all;
}

/**
 * @param {string} type
 * @param {Uint8Array} body
 * @returns {Uint8Array<ArrayBuffer>}
 */
function chunk(type, body) {
  const whole = new Uint8Array(12 + body.length);
  const view = new DataView(whole.buffer);
  view.setUint32(0, body.length);
  whole.set(new TextEncoder().encode(type), 4);
  whole.set(body, 8);
  view.setUint32(8 + body.length, crc(whole.subarray(4, 8 + body.length)));
  return whole;
}

/** CRC-32 as PNG has it. @param {Uint8Array} data */
function crc(data) {
  let value = 0xffffffff;
  for (const byte of data) {
    value ^= byte;
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  }
  return (value ^ 0xffffffff) >>> 0;
}
