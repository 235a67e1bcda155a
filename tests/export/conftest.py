"""The runtime's hand-made bundle serves this room too."""

from tests.runtime.conftest import bundle_copy as bundle_copy
from tests.runtime.conftest import rewrite as rewrite
from tests.runtime.conftest import tiny_bundle as tiny_bundle
