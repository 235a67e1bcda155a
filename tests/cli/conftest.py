"""The runtime's hand-made bundle serves the command line too."""

from tests.runtime.conftest import bundle_copy as bundle_copy
from tests.runtime.conftest import ink as ink
from tests.runtime.conftest import litert_bundle as litert_bundle
from tests.runtime.conftest import mask as mask
from tests.runtime.conftest import picture as picture
from tests.runtime.conftest import rewrite as rewrite
from tests.runtime.conftest import tiny_bundle as tiny_bundle
