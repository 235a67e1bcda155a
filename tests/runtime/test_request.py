"""What is wrong with a request's words, told before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from quad.core.errors import UsageError
from quad.runtime import Request, open_bundle
from quad.runtime.request import resolve


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_half_a_character_is_no_text(tiny_bundle: Path, name: str) -> None:
    """What a terminal makes of bytes that are no text."""
    bundle = open_bundle(tiny_bundle).manifest
    with pytest.raises(UsageError, match=rf"^{name}: expected text in UTF-8, found 'caf.udce9'; write it again$"):
        resolve(Request(**{name: b"caf\xe9".decode("utf-8", "surrogateescape")}), bundle.tasks, bundle.schedule)


def test_a_syntax_that_nobody_reads(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle).manifest
    with pytest.raises(UsageError, match=r"^prompt_syntax: expected one of a1111, plain, found 'comfy'; choose one of these$"):
        resolve(Request(prompt_syntax="comfy"), bundle.tasks, bundle.schedule)  # type: ignore[arg-type]
