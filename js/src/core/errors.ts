/**
 * The error tree, split by who can mend it; the classes and the words are those of `quad.core.errors`.
 *
 * A message is one line: where, expected, found, what to do next.
 */

const LONGEST = 1200;
const HEAD = 800;
const TAIL = 350;
const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu;

/** A text as one printable line. */
export function oneLine(text: string): string {
  const line = text.replace(UNPRINTABLE, escaped);
  return line.length <= LONGEST ? line : `${line.slice(0, HEAD)} ... ${line.slice(-TAIL)}`;
}

/** Root of all errors that quad raises on purpose. */
export class QuadError extends Error {
  override name = "QuadError";

  constructor(message: string, options?: ErrorOptions) {
    super(oneLine(message), options);
  }
}

/** The file or value that the user gave is wrong; the message says how to mend it. */
export class InputError extends QuadError {
  override name = "InputError";
}

/** The call is wrong: an unknown name or a value outside its range. */
export class UsageError extends InputError {
  override name = "UsageError";
}

/** The input is well-formed, but beyond what quad does. */
export class UnsupportedError extends QuadError {
  override name = "UnsupportedError";
}

/** Refused on purpose: running it could give wrong results. */
export class RefusedError extends QuadError {
  override name = "RefusedError";
}

/** A digest, a format version or a path is not what the manifest promises. */
export class VerificationError extends RefusedError {
  override name = "VerificationError";
}

/** Two things that were made for different slots, profiles or targets. */
export class CompatibilityError extends RefusedError {
  override name = "CompatibilityError";
}

/** It was cancelled. */
export class StoppedError extends QuadError {
  override name = "StoppedError";
}

/** An engine, the network or the browser failed. */
export class BackendError extends QuadError {
  override name = "BackendError";
}

/** The one-line form of every message: where, expected, found, what to do next. */
export function mismatch(where: string, expected: unknown, found: unknown, nextStep: string): string {
  return `${where}: expected ${expected}, found ${found}; ${nextStep}`;
}

/** Refuse options that are no object. Raises a `UsageError`. */
export function requireObject(where: string, options: unknown): void {
  if (typeof options !== "object" || options === null) {
    throw new UsageError(mismatch(where, "an object of options", options === null ? "null" : typeof options, "give one, or leave it out"));
  }
}

/** The message of whatever was thrown. */
export function reasonOf(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.split("\n", 1)[0] || "no reason given";
}

/** Raise a `StoppedError` where the caller has given up. */
export function throwIfAborted(signal: AbortSignal | undefined, where: string): void {
  if (signal?.aborted) throw new StoppedError(`${where}: cancelled by its caller`);
}

function escaped(letter: string): string {
  const code = letter.codePointAt(0)!;
  if (code < 0x100) return ({ "\n": "\\n", "\r": "\\r", "\t": "\\t" } as Record<string, string>)[letter] ?? `\\x${hex(code, 2)}`;
  return code < 0x10000 ? `\\u${hex(code, 4)}` : `\\U${hex(code, 8)}`;
}

function hex(code: number, digits: number): string {
  return code.toString(16).padStart(digits, "0");
}
