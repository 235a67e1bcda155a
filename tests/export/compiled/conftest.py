"""Graphs of the small model as the targets compile them."""

from tests.compile.placement.test_integer_readers import case as case
from tests.compile.test_normalised_graph import normalised as normalised
from tests.small_model import adapter_files as adapter_files
from tests.small_model import base as base
from tests.small_model import model_dir as model_dir
from tests.small_model import tiny as tiny
