/** The samplers a user can name, with the settings that diffusers' class of each has; as `quad.runtime.samplers.names`. */

import { mismatch, UsageError } from "../core/errors.js";
import { MOST_STEPS, type SamplerKind, type SamplerSettings, type SamplerSpec, settingsWith } from "../core/sampling.js";
import { quoted } from "../core/text.js";

const KARRAS_ENDING = "-karras";
const KARRAS_WORD = " karras";

/** Their guidance is distilled into the weights that they are made for. */
export const DISTILLED: readonly SamplerKind[] = ["lcm", "tcd"];

/** A sampler that the user named: kind, its class's settings, and steps, those that were given or the usual number. */
interface Choice {
  readonly name: string;
  readonly kind: SamplerKind;
  readonly settings: SamplerSettings;
  readonly steps: number;
}

type Named = Exclude<SamplerKind, "dpmsolver" | "olss">;

const A1111_NAMES: Readonly<Record<Named, string>> = {
  ddim: "DDIM",
  ddpm: "DDPM",
  pndm: "PLMS",
  euler: "Euler",
  "euler-ancestral": "Euler a",
  heun: "Heun",
  lms: "LMS",
  "dpmsolver++": "DPM++ 2M",
  "sde-dpmsolver++": "DPM++ 2M SDE",
  "dpmsolver-sde": "DPM++ SDE",
  unipc: "UniPC",
  lcm: "LCM",
  tcd: "TCD",
};
const KINDS_OF_A1111 = new Map(Object.entries(A1111_NAMES).map(([kind, name]) => [name.toLowerCase(), kind]));

const LEADING = settingsWith({ timestep_spacing: "leading" });
const LINSPACE = settingsWith({ timestep_spacing: "linspace" });
const DPM = settingsWith({ timestep_spacing: "linspace", solver_type: "midpoint" });
/** Kind -> steps where nobody says how many, and its class's settings. */
const KINDS: Readonly<Record<Named, readonly [number, SamplerSettings]>> = {
  ddim: [25, LEADING],
  ddpm: [50, LEADING],
  pndm: [25, settingsWith({ timestep_spacing: "leading", set_alpha_to_one: false })],
  euler: [25, LINSPACE],
  "euler-ancestral": [25, LINSPACE],
  heun: [15, LINSPACE],
  lms: [25, LINSPACE],
  "dpmsolver++": [20, DPM],
  "sde-dpmsolver++": [20, DPM],
  "dpmsolver-sde": [10, LINSPACE],
  unipc: [20, settingsWith({ timestep_spacing: "linspace", solver_type: "bh2" })],
  lcm: [4, LEADING],
  tcd: [4, LEADING],
};
const WITH_KARRAS: readonly string[] = ["euler", "heun", "lms", "dpmsolver++", "sde-dpmsolver++", "dpmsolver-sde", "unipc"];
/** Fields that a sampler of another kind takes over where they are not as its class has them, and the kinds whose classes read them. */
const SHARED: Readonly<Record<"timestep_spacing" | "steps_offset" | "clip_sample_range", readonly string[]>> = {
  timestep_spacing: Object.keys(KINDS),
  steps_offset: Object.keys(KINDS),
  clip_sample_range: ["ddim", "ddpm", "heun", "lcm", "tcd"],
};
/** Stable Diffusion's configs all state `set_alpha_to_one`, the same for every class. */
const ENDING: readonly string[] = ["ddim", "pndm", "lcm", "tcd"];

const CHOICES: ReadonlyMap<string, Choice> = new Map(
  (Object.keys(KINDS) as Named[]).flatMap((kind) => {
    const [steps, settings] = KINDS[kind];
    const plain = { name: kind, kind, settings, steps };
    const karras = { name: kind + KARRAS_ENDING, kind, settings: { ...settings, sigmas: "karras" as const }, steps };
    return (WITH_KARRAS.includes(kind) ? [plain, karras] : [plain]).map((choice): [string, Choice] => [choice.name, choice]);
  }),
);

export const SAMPLER_NAMES: readonly string[] = [...CHOICES.keys()];

/** Whether a text names a sampler. */
export function isSampler(text: string): boolean {
  return CHOICES.has(ownName(text.split(":", 1)[0]!));
}

/** The sampler that a user names, `KIND` or `KIND:STEPS`, as the model's config means it. Raises a `UsageError` for what is none. */
export function namedSampler(text: string, own: SamplerSpec, stored: Readonly<Record<string, SamplerSettings>>): SamplerSpec {
  const choice = parseSampler(text);
  const settings = (Object.hasOwn(stored, choice.name) ? stored[choice.name] : undefined) ?? carried(choice, own);
  return { kind: choice.kind, steps: choice.steps, olss: null, settings };
}

/** A sampler as a user would write it. */
export function samplerText(spec: SamplerSpec): string {
  return `${spec.kind}${spec.settings?.sigmas === "karras" ? KARRAS_ENDING : ""}:${spec.steps}`;
}

function parseSampler(text: string): Choice {
  const [given, ...rest] = text.split(":");
  const count = rest.length ? rest.join(":") : undefined;
  const name = ownName(given!);
  const choice = CHOICES.get(name);
  if (choice === undefined) {
    const expected = `one of ${SAMPLER_NAMES.join(", ")}, and :STEPS`;
    throw new UsageError(mismatch("sampler", expected, quoted(text), "choose one of these"));
  }
  if (count === undefined) return choice;
  if (!/^[0-9]{1,9}$/.test(count) || Number(count) < 1 || Number(count) > MOST_STEPS) {
    const expected = `a number of steps after the colon, up to ${MOST_STEPS}`;
    throw new UsageError(mismatch(`sampler ${quoted(name)}`, expected, quoted(count), `write ${name}:20`));
  }
  return { ...choice, steps: Number(count) };
}

/** A name of A1111's in the words of this module; any other text as it is. */
function ownName(given: string): string {
  const words = given.toLowerCase().trim().split(/\s+/).join(" ");
  const kind = words.endsWith(KARRAS_WORD) ? words.slice(0, -KARRAS_WORD.length) : words;
  const own = KINDS_OF_A1111.get(kind);
  return own === undefined ? given : own + (kind === words ? "" : KARRAS_ENDING);
}

/** The class's settings, with what `own` has otherwise than its class; a sampler of the same kind keeps all of its own. */
function carried(choice: Choice, own: SamplerSpec): SamplerSettings {
  const given = own.settings ?? settingsWith();
  if (own.kind === choice.kind) return { ...given, sigmas: choice.settings.sigmas };
  const usual = Object.hasOwn(KINDS, own.kind) ? KINDS[own.kind as Named][1] : LEADING;
  const fields = Object.entries(SHARED).filter(([field, kinds]) => {
    return kinds.includes(choice.kind) && given[field as keyof typeof SHARED] !== usual[field as keyof typeof SHARED];
  });
  const changes = fields.map(([field]) => [field, given[field as keyof typeof SHARED]]);
  const ends = ENDING.includes(choice.kind) && ENDING.includes(own.kind) ? { set_alpha_to_one: given.set_alpha_to_one } : {};
  return { ...choice.settings, ...Object.fromEntries(changes), ...ends };
}
