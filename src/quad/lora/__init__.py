"""LoRA files of every dialect and kind, as pairs of matrices. NumPy only: a device can read them too."""
