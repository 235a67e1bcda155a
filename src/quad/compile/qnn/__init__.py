"""Qualcomm's HTP: chips, compilation, emulation, and the encodings files of Qualcomm's own converter."""
