/** Values as quad's messages write them. */

/** A text in quotes, as Python's `repr` writes it; other values as they are. */
export function quoted(value: unknown): string {
  if (typeof value !== "string") return shown(value);
  const mark = value.includes("'") && !value.includes('"') ? '"' : "'";
  return mark + value.replaceAll("\\", "\\\\").replaceAll(mark, `\\${mark}`) + mark;
}

/** A value that is no text. */
export function shown(value: unknown): string {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(quoted).join(", ")}]`;
  return typeof value === "object" ? (value.constructor?.name ?? "object") : String(value);
}

/** A number with six significant digits and no needless zeros, as the format `g` writes it. */
export function general(value: number): string {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "nan" : value > 0 ? "inf" : "-inf";
  if (value === 0) return Object.is(value, -0) ? "-0" : "0";
  const exponent = Number(value.toExponential(5).split("e")[1]);
  if (exponent < -4 || exponent >= 6) {
    const [digits, power] = value.toExponential(5).split("e");
    const size = Math.abs(Number(power)).toString().padStart(2, "0");
    return `${trimmed(digits!)}e${power!.startsWith("-") ? "-" : "+"}${size}`;
  }
  return trimmed(value.toFixed(5 - exponent));
}

/** The shape of a tensor, as Python writes a tuple. */
export function shapeText(shape: readonly (number | null)[]): string {
  const sizes = shape.map((size) => (size === null ? "None" : String(size)));
  return sizes.length === 1 ? `(${sizes[0]},)` : `(${sizes.join(", ")})`;
}

function trimmed(digits: string): string {
  return digits.includes(".") ? digits.replace(/0+$/, "").replace(/\.$/, "") : digits;
}
