/** `adapter.json`: one adapter as shipped; as `quad.core.manifest`. */

import {
  type Decoded,
  type Decoder,
  integer,
  listOf,
  mapOf,
  matching,
  maybe,
  number,
  oneOf,
  optional,
  required,
  struct,
  text,
} from "./decode.js";
import { adapterDefaults } from "./sampling.js";
import { taskSpec } from "./task.js";

export const adapterName: Decoder<string> = matching(/^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/);

export const adapterManifest = struct({
  name: required(adapterName),
  format_version: required(integer()),
  rank: required(integer(0, 2 ** 16)),
  bits: required(oneOf(8, 16, 32)),
  size_bytes: required(integer(0)),
  sha256: required(text),
  parents: required(mapOf(text)),
  tasks: optional(mapOf(taskSpec), {}),
  headroom: maybe(number()),
  defaults: maybe(adapterDefaults),
  group: optional(integer(0, 15), 0),
  /** The answer of the U-Net with the adapter to one stored probe, coarsely. */
  golden: maybe(struct({ probe: required(integer(0, 2 ** 10)), values: required(listOf(number())) })),
});

/** What an adapter says of itself. */
export type AdapterManifest = Decoded<typeof adapterManifest>;

export const mergedAdapter = struct({
  name: required(adapterName),
  defaults: maybe(adapterDefaults),
});

/** An adapter that is in a bundle's weights. */
export type MergedAdapter = Decoded<typeof mergedAdapter>;
