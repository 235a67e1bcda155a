"""The vocabulary of quad: what every room may import. NumPy, msgspec and safetensors only."""
