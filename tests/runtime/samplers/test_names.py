"""Names of samplers: quad's own, and A1111's, which are written into pictures and read back."""

from __future__ import annotations

import pytest

from quad.core.errors import UsageError
from quad.runtime.provenance.parameters import sampler_fields
from quad.runtime.samplers.names import SAMPLER_NAMES, parse_sampler


@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_what_a_picture_says_is_read_back(name: str) -> None:
    fields = sampler_fields(f"{name}:7")
    written = f"{fields['Sampler']} {fields.get('Schedule type', '')}".strip()
    for spelled in (written, written.upper(), name):
        assert parse_sampler(f"{spelled}:7").text == f"{name}:7"
        assert parse_sampler(spelled).text == name


@pytest.mark.parametrize("name", ["DPM++ 3M SDE", "Euler a Karras", "karras", "DPM++  2M Karraś", ""])
def test_what_there_is_not_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(UsageError, match="sampler: expected one of ddim, "):
        parse_sampler(name)
