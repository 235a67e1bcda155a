"""Chips that LiteRT's compiler plugins know by name, and what this package can say of each vendor's.

Source: the targets of ai-edge-litert 2.3.0; docs/targets.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from quad.compile.qnn.chips import SOCS, generation_of
from quad.core.errors import UsageError, mismatch


class Vendor(msgspec.Struct, frozen=True, kw_only=True):
    """A maker of chips, LiteRT's plugin for it, and how the SDK is found that the plugin needs.

    Args:
        name: in messages.
        manufacturer: the plugin's own word.
        plugin: folder of its library below `vendors`.
        variable: of the environment, which the plugin itself reads: folders with the SDK; empty where that comes as a package.
        below: where `library` lies in such a folder.
        library: of the SDK.
    """

    name: str
    manufacturer: str
    plugin: str
    variable: str = ""
    below: str = ""
    library: str = ""


class Chip(msgspec.Struct, frozen=True, kw_only=True):
    """One chip.

    Args:
        name: as `--soc` has it.
        model: as the plugin has it.
        flags: of the plugin, beside.
    """

    name: str
    vendor: Vendor
    model: str
    flags: tuple[str, ...] = ()


QUALCOMM = Vendor(name="Qualcomm", manufacturer="Qualcomm", plugin="qualcomm")
MEDIATEK = Vendor(name="MediaTek", manufacturer="MediaTek", plugin="mediatek", variable="LD_LIBRARY_PATH", library="libneuron_adapter.so")
LSI = Vendor(name="Samsung LSI", manufacturer="Samsung", plugin="samsung", variable="EXYNOS_AI_LITECORE_ROOT", below="lib/x86_64-linux",
             library="libgraphgen_api.so")  # fmt: skip

_MEDIATEK_V8 = ("MT6853", "MT6877", "MT6878", "MT6879", "MT6886", "MT6893", "MT6895", "MT6897", "MT6983", "MT6985", "MT6989", "MT6991",
                "MT8171", "MT8188", "MT8189")  # fmt: skip
_MEDIATEK_V9 = ("MT6993",)
CHIPS = {
    chip.name: chip
    for chip in (
        *(Chip(name=name, vendor=MEDIATEK, model=name.lower()) for name in _MEDIATEK_V8),
        *(Chip(name=name, vendor=MEDIATEK, model=name.lower(), flags=("--mediatek_sdk_version_type=version9",)) for name in _MEDIATEK_V9),
        Chip(name="E9965", vendor=LSI, model="E9965"),
        *(Chip(name=name, vendor=QUALCOMM, model=name) for name in SOCS),
    )
}


def chips_named(names: Sequence[str]) -> tuple[Chip, ...]:
    """Chips by their names, in either case, each once, in the order given.

    Raises:
        UsageError: there is none of that name, or its HTP does not take LiteRT's form of a slot.
    """
    return tuple(dict.fromkeys(_chip(name) for name in names))


def _chip(name: str) -> Chip:
    chip = CHIPS.get(name.upper())
    if chip is None:
        raise UsageError(mismatch("--soc", " | ".join(CHIPS), name, "choose among these"))
    if chip.vendor == QUALCOMM and generation_of(SOCS[chip.name]).int16_operand == 0:
        expected = "a chip whose HTP takes a signed 16-bit second operand (v73 and later)"
        raise UsageError(mismatch("--soc", expected, chip.name, f"build with --target qnn-htp --soc {chip.name}"))
    return chip
