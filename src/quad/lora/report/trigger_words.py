"""Words that a prompt has to say for a LoRA to show, by its trainer's metadata: the key is that of Stability's ModelSpec."""

from __future__ import annotations

from collections.abc import Mapping

_KEY, _LONGEST = "modelspec.trigger_phrase", 1000


def trigger_words(metadata: Mapping[str, str]) -> str:
    """Printable words on one line with single spaces between them, as many as a manifest may hold; "" where the metadata says none."""
    text = "".join(letter if letter.isprintable() else " " for letter in metadata.get(_KEY, ""))
    return " ".join(text.split())[:_LONGEST].rstrip()
