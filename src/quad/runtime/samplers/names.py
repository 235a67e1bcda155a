"""The samplers a user can name, with the settings that diffusers' class of each has where a model's config is silent.

A name that a model did not come with gets those settings, and what the bundle's own sampler has otherwise than its class: that is what
`Scheduler.from_config` carries from one class to another. Where a model's config says more, its build stores the settings of that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from quad.core.errors import UsageError, mismatch
from quad.core.manifest import MOST_STEPS, SamplerSpec
from quad.core.sampling import SamplerKind, SamplerSettings

KARRAS_ENDING = "-karras"  # what stands before it is the kind
# Kind -> its name in A1111's web UI, which is read too, in any case, and with ` Karras` behind it; one that is not here has its own there.
_A1111_NAMES: Mapping[SamplerKind, str] = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "pndm": "PLMS",
    "euler": "Euler",
    "euler-ancestral": "Euler a",
    "heun": "Heun",
    "lms": "LMS",
    "dpmsolver++": "DPM++ 2M",
    "sde-dpmsolver++": "DPM++ 2M SDE",
    "dpmsolver-sde": "DPM++ SDE",
    "unipc": "UniPC",
    "lcm": "LCM",
    "tcd": "TCD",
}
# Their guidance is distilled into the weights that they are made for.
DISTILLED: tuple[SamplerKind, ...] = ("lcm", "tcd")
_KARRAS_WORD = " karras"
_DIGITS = 9  # Python itself refuses to read thousands
_LEADING = SamplerSettings(timestep_spacing="leading")
_LINSPACE = SamplerSettings(timestep_spacing="linspace")
_DPM = SamplerSettings(timestep_spacing="linspace", solver_type="midpoint")
_UNIPC = SamplerSettings(timestep_spacing="linspace", solver_type="bh2")
# Kind -> steps where nobody says how many (diffusers' pipelines: 50 for all), and its class's settings.
_KINDS: Mapping[SamplerKind, tuple[int, SamplerSettings]] = {
    "ddim": (25, _LEADING),
    "ddpm": (50, _LEADING),
    "pndm": (25, SamplerSettings(timestep_spacing="leading", set_alpha_to_one=False)),
    "euler": (25, _LINSPACE),
    "euler-ancestral": (25, _LINSPACE),
    "heun": (15, _LINSPACE),
    "lms": (25, _LINSPACE),
    "dpmsolver++": (20, _DPM),
    "sde-dpmsolver++": (20, _DPM),
    "dpmsolver-sde": (10, _LINSPACE),
    "unipc": (20, _UNIPC),
    "lcm": (4, _LEADING),
    "tcd": (4, _LEADING),
}
_WITH_KARRAS: tuple[SamplerKind, ...] = ("euler", "heun", "lms", "dpmsolver++", "sde-dpmsolver++", "dpmsolver-sde", "unipc")
# Fields that a sampler of another kind takes over where they are not as its class has them, and the kinds whose classes read them.
_SHARED: Mapping[str, tuple[SamplerKind, ...]] = {
    "timestep_spacing": tuple(_KINDS),
    "steps_offset": tuple(_KINDS),
    "clip_sample_range": ("ddim", "ddpm", "heun", "lcm", "tcd"),
}
# Stable Diffusion's configs all state this one, the same for every class.
_ENDING: tuple[SamplerKind, ...] = ("ddim", "pndm", "lcm", "tcd")


@dataclass(frozen=True, kw_only=True)
class SamplerChoice:
    """A sampler that the user named: name, kind, its class's settings, and steps: those that were given, or the usual number.

    Args:
        stated: steps were given.
    """

    name: str
    kind: SamplerKind
    settings: SamplerSettings
    steps: int
    stated: bool = False

    @property
    def text(self) -> str:
        """As `parse_sampler` reads it, with steps where they were given."""
        return f"{self.name}:{self.steps}" if self.stated else self.name


def _named() -> dict[str, SamplerChoice]:
    names: dict[str, SamplerChoice] = {}
    for kind, (steps, settings) in _KINDS.items():
        names[kind] = SamplerChoice(name=kind, kind=kind, settings=settings, steps=steps)
        if kind in _WITH_KARRAS:
            karras = msgspec.structs.replace(settings, sigmas="karras")
            names[kind + KARRAS_ENDING] = SamplerChoice(name=kind + KARRAS_ENDING, kind=kind, settings=karras, steps=steps)
    return names


_NAMES: Mapping[str, SamplerChoice] = _named()
SAMPLER_NAMES = tuple(_NAMES)
_KINDS_OF_A1111: Mapping[str, SamplerKind] = {name.lower(): kind for kind, name in _A1111_NAMES.items()}


def a1111_name(kind: str) -> str:
    """A kind's name in A1111's web UI; its own where it has none there."""
    return next((name for own, name in _A1111_NAMES.items() if own == kind), kind)


def parse_sampler(text: str) -> SamplerChoice:
    """Read `KIND` or `KIND:STEPS`; A1111's names of them (`DPM++ 2M Karras`) are read too.

    Raises:
        UsageError: an unknown kind (the message lists those there are), or steps that are no whole number of 1 or more.
    """
    given, colon, count = text.partition(":")
    name = _own_name(given)
    if name not in _NAMES:
        raise UsageError(mismatch("sampler", f"one of {', '.join(SAMPLER_NAMES)}, and :STEPS", repr(text), "choose one of these"))
    if colon and not (count.isascii() and count.isdigit() and len(count) <= _DIGITS and 1 <= int(count) <= MOST_STEPS):
        expected = f"a number of steps after the colon, up to {MOST_STEPS}"
        raise UsageError(mismatch(f"sampler {name!r}", expected, repr(count), f"write {name}:20"))
    return replace(_NAMES[name], steps=int(count), stated=True) if colon else _NAMES[name]


def is_sampler(text: str) -> bool:
    """Whether `parse_sampler` knows the kind."""
    return _own_name(text.partition(":")[0]) in _NAMES


def _own_name(given: str) -> str:
    """A name of A1111's in the words of this module; any other text as it is."""
    words = " ".join(given.lower().split())
    kind = words.removesuffix(_KARRAS_WORD)
    if kind not in _KINDS_OF_A1111:
        return given
    return _KINDS_OF_A1111[kind] + (KARRAS_ENDING if kind != words else "")


def named_sampler(text: str, own: SamplerSpec, stored: Mapping[str, SamplerSettings]) -> SamplerSpec:
    """The sampler that a user names, as the model's config means it.

    Args:
        own: a sampler that the model came with.
        stored: settings by name that its build found to be others than those which follow from `own`.

    Raises:
        UsageError: as `parse_sampler`.
    """
    choice = parse_sampler(text)
    settings = stored.get(choice.name) or _carried(choice, own)
    return SamplerSpec(kind=choice.kind, steps=choice.steps, settings=settings)


def _carried(choice: SamplerChoice, own: SamplerSpec) -> SamplerSettings:
    """The class's settings, with what `own` has otherwise than its class; a sampler of the same kind keeps all of its own."""
    given = SamplerSettings() if own.settings is msgspec.UNSET else own.settings
    if own.kind == choice.kind:
        return msgspec.structs.replace(given, sigmas=choice.settings.sigmas)
    usual = _KINDS[own.kind][1] if own.kind in _KINDS else _LEADING
    fields = [field for field, kinds in _SHARED.items() if choice.kind in kinds and getattr(given, field) != getattr(usual, field)]
    if choice.kind in _ENDING and own.kind in _ENDING:
        fields.append("set_alpha_to_one")
    return msgspec.structs.replace(choice.settings, **{field: getattr(given, field) for field in fields})
