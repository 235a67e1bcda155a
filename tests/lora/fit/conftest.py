"""The tiny network and the adapters that quantization is tested with."""

from tests.quantize.conftest import make_adapter, tiny

__all__ = ["make_adapter", "tiny"]
