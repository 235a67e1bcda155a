"""How a LoRA is meant to be run, by the metadata of its file.

key                          here
modelspec.trigger_phrase     words that a prompt has to say for it to show; the key is that of Stability's ModelSpec
quad_sampler                 `KIND` or `KIND:STEPS`, as behind an adapter's path
quad_guidance                classifier-free guidance scale
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from quad.core.errors import InputError, mismatch
from quad.core.sampling import AdapterDefaults

SAMPLER_KEY, GUIDANCE_KEY = "quad_sampler", "quad_guidance"
_TRIGGER_KEY, _MOST_WORDS, _MOST_SAMPLER = "modelspec.trigger_phrase", 1000, 64


def stated_defaults(where: str, metadata: Mapping[str, str]) -> AdapterDefaults:
    """Sampler, guidance and trigger words that the metadata says, printable and on one line.

    Args:
        where: the file, for messages.

    Raises:
        InputError: the guidance is no finite number.
    """
    return AdapterDefaults(
        sampler=_one_line(metadata.get(SAMPLER_KEY, ""))[:_MOST_SAMPLER] or None,
        guidance=_guidance(where, metadata.get(GUIDANCE_KEY)),
        trigger_words=_one_line(metadata.get(_TRIGGER_KEY, ""))[:_MOST_WORDS].rstrip() or None,
    )


def _one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _guidance(where: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(mismatch(f"{where}, {GUIDANCE_KEY} of its metadata", "a finite number", repr(text[:60]), "mend the metadata"))
    return number
