"""The small model serves the whole room."""

from tests.small_model import adapter_files as adapter_files
from tests.small_model import base as base
from tests.small_model import model_dir as model_dir
from tests.small_model import tiny as tiny
