"""A frozen bundle of a few kilobytes serves the room."""

from pathlib import Path

import pytest

from tests.admit.frozen import freeze
from tests.runtime.conftest import normalised_bundle as normalised_bundle
from tests.runtime.conftest import tiny_bundle as tiny_bundle


@pytest.fixture(scope="session")
def frozen(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with stored calls; not to be written to."""
    return freeze(tiny_bundle, tmp_path_factory.mktemp("frozen") / "phone")
