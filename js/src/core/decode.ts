/** JSON into typed values; what does not fit is told in the words that msgspec uses in Python. */

export type Decoder<T> = (value: unknown, at: string) => T;
/** What a decoder gives. */
export type Decoded<D> = D extends Decoder<infer T> ? T : never;

/** A field of an object: its decoder, and what stands for it where it is absent. */
export interface Field<T> {
  readonly decode: Decoder<T>;
  readonly absent?: (() => T) | undefined;
}

/** A value that is not of its type; the message says where. */
export class DecodeError extends Error {}

function fail(expected: string, value: unknown, at: string): never {
  throw new DecodeError(`Expected \`${expected}\`, got \`${kindOf(value)}\` - at \`${at}\``);
}

export const text: Decoder<string> = (value, at) => (typeof value === "string" ? value : fail("str", value, at));

export const boolean: Decoder<boolean> = (value, at) => (typeof value === "boolean" ? value : fail("bool", value, at));

/** A number within bounds, both inclusive. */
export function number(low = -Infinity, high = Infinity): Decoder<number> {
  return (value, at) => {
    if (typeof value !== "number") fail("float", value, at);
    return within(value, low, high, "float", at);
  };
}

/** A whole number within bounds, both inclusive. */
export function integer(low = -Infinity, high = Infinity): Decoder<number> {
  return (value, at) => {
    if (typeof value !== "number" || !Number.isInteger(value)) fail("int", value, at);
    return within(value, low, high, "int", at);
  };
}

/** A text that a pattern fits. */
export function matching(pattern: RegExp): Decoder<string> {
  return (value, at) => {
    const found = text(value, at);
    if (!pattern.test(found)) throw new DecodeError(`Expected \`str\` matching regex '${pattern.source}' - at \`${at}\``);
    return found;
  };
}

/** One of a few words or numbers. */
export function oneOf<const T extends readonly (string | number)[]>(...choices: T): Decoder<T[number]> {
  return (value, at) => {
    if (!choices.includes(value as T[number])) throw new DecodeError(`Invalid enum value ${JSON.stringify(value)} - at \`${at}\``);
    return value as T[number];
  };
}

/** A list of values of one type. */
export function listOf<T>(item: Decoder<T>, least = 0, most = Infinity): Decoder<readonly T[]> {
  return (value, at) => {
    if (!Array.isArray(value)) return fail("array", value, at);
    if (value.length < least || value.length > most) {
      throw new DecodeError(`Expected \`array\` of length ${value.length < least ? `>= ${least}` : `<= ${most}`} - at \`${at}\``);
    }
    return value.map((each, index) => item(each, `${at}[${index}]`));
  };
}

/** An object of values of one type, by name. */
export function mapOf<T>(item: Decoder<T>): Decoder<Readonly<Record<string, T>>> {
  return (value, at) => {
    if (!isObject(value)) return fail("object", value, at);
    // No prototype: `constructor` and its like are names as any other.
    const decoded: Record<string, T> = Object.create(null) as Record<string, T>;
    for (const [name, each] of Object.entries(value)) decoded[name] = item(each, `${at}[...]`);
    return decoded;
  };
}

/** A value, or null. */
export function nullable<T>(decoder: Decoder<T>): Decoder<T | null> {
  return (value, at) => (value === null ? null : decoder(value, at));
}

/** A field that has to be there. */
export function required<T>(decode: Decoder<T>): Field<T> {
  return { decode };
}

/** A field that has a value where it is absent. */
export function optional<T>(decode: Decoder<T>, absent: T): Field<T> {
  return { decode, absent: () => absent };
}

/** A field that may be absent. */
export function maybe<T>(decode: Decoder<T>): Field<T | undefined> {
  return { decode, absent: () => undefined };
}

/** An object with these fields; others are passed over, or refused where `closed`. */
export function struct<T extends object>(fields: { [K in keyof T]-?: Field<T[K]> }, closed = false): Decoder<Readonly<T>> {
  return (value, at) => {
    if (!isObject(value)) return fail("object", value, at);
    const decoded = {} as T;
    for (const name of Object.keys(fields) as (keyof T & string)[]) {
      const field: Field<T[keyof T & string]> = fields[name];
      if (Object.hasOwn(value, name)) decoded[name] = field.decode(value[name], `${at}.${name}`);
      else if (field.absent !== undefined) decoded[name] = field.absent();
      else throw new DecodeError(`Object missing required field \`${name}\`${at === "$" ? "" : ` - at \`${at}\``}`);
    }
    const odd = closed ? Object.keys(value).find((name) => !Object.hasOwn(fields, name)) : undefined;
    if (odd !== undefined) throw new DecodeError(`Object contains unknown field \`${odd}\` - at \`${at}\``);
    return decoded;
  };
}

/** JSON text as a typed value. Raises a `DecodeError` for anything else. */
export function decodeJson<T>(content: Uint8Array, decoder: Decoder<T>): T {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(content));
  } catch (error) {
    throw new DecodeError(`JSON is malformed: ${error instanceof Error ? error.message : error}`);
  }
  return decoder(value, "$");
}

function within(value: number, low: number, high: number, kind: string, at: string): number {
  if (value < low) throw new DecodeError(`Expected \`${kind}\` >= ${low} - at \`${at}\``);
  if (value > high) throw new DecodeError(`Expected \`${kind}\` <= ${high} - at \`${at}\``);
  return value;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function kindOf(value: unknown): string {
  if (value === null || value === undefined) return "null";
  if (Array.isArray(value)) return "array";
  if (typeof value === "number") return Number.isInteger(value) ? "int" : "float";
  return { string: "str", boolean: "bool", object: "object" }[typeof value as string] ?? typeof value;
}
