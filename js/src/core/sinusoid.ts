/** The embedding of a number by waves of many lengths, computed outside the graphs; as `Sinusoid` in `quad.core.ports`. */

import { boolean, type Decoded, integer, number, optional, required, struct } from "./decode.js";

export const sinusoid = struct({
  channels: required(integer(2, 2 ** 16)),
  cosine_first: optional(boolean, true),
  shift: optional(number(), 0),
  period: optional(number(), 10_000),
});

/** Of how many channels, and which waves. Source: diffusers' `Timesteps`. */
export type Sinusoid = Decoded<typeof sinusoid>;

/** Numbers to `channels` waves each, in float32 as the network does it. */
export function waves(spec: Sinusoid, values: readonly number[]): Float32Array {
  const f = Math.fround;
  const half = Math.floor(spec.channels / 2);
  const slope = f(-Math.log(spec.period));
  const all = new Float32Array(values.length * 2 * half);
  for (const [row, value] of values.entries()) {
    for (let k = 0; k < half; k++) {
      const angle = f(f(value) * f(Math.exp(f(f(slope * k) / f(half - spec.shift)))));
      const place = row * 2 * half + k;
      all[place + (spec.cosine_first ? 0 : half)] = Math.cos(angle);
      all[place + (spec.cosine_first ? half : 0)] = Math.sin(angle);
    }
  }
  return all;
}
