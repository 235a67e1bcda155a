"""The types that an engine may compute in where a graph is float."""

from __future__ import annotations

AUTO, F32, BF16 = "auto", "f32", "bf16"
FLOAT_TYPES = (AUTO, F32, BF16)
