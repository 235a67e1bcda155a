"""The small U-Net, compiled for the HTP."""

from tests.compile.qnn.placed_htp import binary as binary
from tests.compile.qnn.placed_htp import placed as placed
