"""Families of models as tables: how a model is told and opened, what it does, and how LoRA files for it spell their keys.

A table is data: it names classes as `module:Class` and transforms of names by the names that the code gives them, so that the device
side, which reads LoRA files too, imports no torch. To add a family, see CONTRIBUTING.md.
"""

from __future__ import annotations

from quad.core.families.others import OTHERS
from quad.core.families.pixart import PIXART_ALPHA
from quad.core.families.stable_diffusion import SD1, SD2
from quad.core.families.stable_diffusion_xl import SDXL
from quad.core.families.table import (
    EDITING,
    INPAINTING,
    Component,
    Condition,
    ConfigRule,
    Family,
    Layout,
    OneFile,
    OneFileText,
    Signs,
    TextEncoder,
)

__all__ = [
    "EDITING", "FAMILIES", "INPAINTING", "OTHERS", "SIGNS", "SUPPORTED", "TEXT_PARTS", "Component", "Condition", "ConfigRule", "Family",
    "Layout", "OneFile", "OneFileText", "Signs", "TextEncoder", "family_of_class",
]  # fmt: skip

# The first is taken where nothing tells which one a model is.
FAMILIES: tuple[Family, ...] = (SD1, SD2, SDXL, PIXART_ALPHA)
# Beginning of a module's path in a text encoder of several parts -> the model that LoRA files call so.
TEXT_PARTS: dict[str, Component] = {f"{text.part}.": text.folder for family in FAMILIES for text in family.texts if text.part}
SIGNS: tuple[Signs, ...] = (*(family.signs for family in FAMILIES), *OTHERS)
_NAMES = [family.name for family in FAMILIES]
SUPPORTED = f"a {', '.join(_NAMES[:-1])} or {_NAMES[-1]} model"


def family_of_class(class_name: str) -> str:
    """A class's name, and the family that it shows."""
    name = next((signs.name for signs in SIGNS if any(part in class_name for part in signs.classes)), None)
    return f"{class_name} ({name})" if name else class_name
