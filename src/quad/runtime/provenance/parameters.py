"""The `parameters` text of a PNG, as A1111's web UI writes it and as galleries and other programs read it.

Two lines of text, then one line of `Key: value, Key: value`; a value with a comma, a colon or a line break stands in JSON quotes.
Source: stable-diffusion-webui, generation parameters.
"""

from __future__ import annotations

import json

from quad import __version__
from quad.runtime.adapters.block_weights import Weight
from quad.runtime.provenance.facts import PictureFacts
from quad.runtime.samplers.names import KARRAS_ENDING, a1111_name

_DIGITS = 10


def parameters_text(facts: PictureFacts) -> str:
    """The text of one picture."""
    lines = [facts.prompt + "".join(map(_tag, facts.adapters, facts.adapters.values()))]
    if facts.negative_prompt:
        lines.append(f"Negative prompt: {facts.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in _fields(facts).items()))
    return "\n".join(lines)


def sampler_fields(sampler: str) -> dict[str, str]:
    """`KIND[-karras][:STEPS]` in the names of that program."""
    name, _, steps = sampler.partition(":")
    kind = name.removesuffix(KARRAS_ENDING)
    fields = {"Steps": steps} if steps else {}
    fields["Sampler"] = a1111_name(kind)
    return fields if kind == name else {**fields, "Schedule type": "Karras"}


def _fields(facts: PictureFacts) -> dict[str, str]:
    fields = {**sampler_fields(facts.sampler), "CFG scale": f"{facts.guidance:g}"}
    if facts.seed is not None:
        fields["Seed"] = str(facts.seed)
    fields["Size"] = "{}x{}".format(*facts.size)
    name, digest = facts.model
    fields |= {"Model": name, "Bundle digest": digest[:_DIGITS]}
    if facts.strength is not None:
        fields["Denoising strength"] = f"{facts.strength:g}"
    if facts.guidance_interval is not None:
        fields["Guidance interval"] = "{:g} to {:g}".format(*facts.guidance_interval)
    if facts.reuse > 1:
        fields["Deep feature reuse"] = str(facts.reuse)
    if facts.tiny_decoder:
        fields["Decoder"] = "tiny"
    return {**fields, "Version": f"quad {__version__}"}


def _tag(name: str, weight: Weight) -> str:
    """An adapter as a prompt there names it; weights by block have no number."""
    return f"<lora:{name}:{weight:g}>" if isinstance(weight, int | float) else f"<lora:{name}>"


def _quoted(value: str) -> str:
    plain = value == value.strip() and not any(mark in value for mark in ',:\n"')
    return value if plain else json.dumps(value, ensure_ascii=False)
