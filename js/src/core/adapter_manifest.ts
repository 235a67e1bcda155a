/** `adapter.json`: one adapter as shipped; as `quad.core.manifest`. */

import { type Decoder, integer, listOf, mapOf, matching, maybe, number, oneOf, optional, required, struct, text } from "./decode.js";
import { type AdapterDefaults, adapterDefaults } from "./sampling.js";
import { type TaskSpec, taskSpec } from "./task.js";

/** The answer of the U-Net with the adapter to one stored probe, coarsely. */
export interface Golden {
  readonly probe: number;
  readonly values: readonly number[];
}

/** What an adapter says of itself. */
export interface AdapterManifest {
  readonly name: string;
  readonly format_version: number;
  readonly rank: number;
  readonly bits: number;
  readonly size_bytes: number;
  readonly sha256: string;
  readonly parents: Readonly<Record<string, string>>;
  readonly tasks: Readonly<Record<string, TaskSpec>>;
  readonly headroom: number | undefined;
  readonly defaults: AdapterDefaults | undefined;
  readonly group: number;
  readonly golden: Golden | undefined;
}

/** An adapter that is in a bundle's weights. */
export interface MergedAdapter {
  readonly name: string;
  readonly defaults: AdapterDefaults | undefined;
}

export const adapterName: Decoder<string> = matching(/^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/);

export const adapterManifest: Decoder<AdapterManifest> = struct<AdapterManifest>({
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
  golden: maybe(struct<Golden>({ probe: required(integer(0, 2 ** 10)), values: required(listOf(number())) })),
});

export const mergedAdapter: Decoder<MergedAdapter> = struct<MergedAdapter>({
  name: required(adapterName),
  defaults: maybe(adapterDefaults),
});
