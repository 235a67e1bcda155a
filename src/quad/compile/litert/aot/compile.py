"""One written `.tflite` file for each chip of a build, and what is known of each: never more than was done here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from quad.compile.litert.aot.chips import QUALCOMM, Chip
from quad.compile.litert.aot.front_ends import missing_sdk, run_front_end, sdk_folder
from quad.core.chips import ACCEPTED, EMULATED, NOT_COMPILED


@dataclass(frozen=True, kw_only=True)
class ChipResult:
    """One file for one chip, and its fate.

    Args:
        chip: its name.
        vendor: who makes it.
        state: what was done, in the words of `quad.core.chips`.
        file: name of the chip's file; None where none was kept.
        ops: operators of the graph; 0 where no plugin counted them.
        partitions: pieces that the plugin makes of them.
        agreement_db: SQNR in emulation against LiteRT's interpreter, by what the graph was fed with.
        note: why nothing was compiled.
    """

    chip: str
    vendor: str
    state: str
    file: str | None = None
    ops: int = 0
    partitions: int = 0
    agreement_db: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


def require_aot(chips: Sequence[Chip]) -> None:
    """Say that a compiler is missing before minutes are spent on what it would compile.

    Raises:
        BackendError: LiteRT's package is not installed, or that of Qualcomm's compiler where a chip is theirs.
    """
    from quad.compile.litert.aot.plugin import package_folder

    if chips:
        package_folder()
    for chip in chips:
        if chip.vendor == QUALCOMM:
            from quad.compile.litert.aot.qualcomm import require_qualcomm  # imports LiteRT, an extra

            require_qualcomm(chip)


def compile_for_chips(
    model: Path, chips: Sequence[Chip], feeds: Mapping[str, Mapping[str, NDArray[Any]]], folder: Path
) -> tuple[ChipResult, ...]:
    """A file for every chip whose compiler is here.

    Args:
        model: `COMPONENT/model.tflite`, of integers.
        feeds: name -> every input of the graph, by the file's names and in its element types.
        folder: where `CHIP.tflite` goes.

    Raises:
        BackendError: Qualcomm's compiler does not take the whole graph, or computes it wrongly.
    """
    return tuple(_compile(model, chip, feeds, folder) for chip in chips)


def _compile(model: Path, chip: Chip, feeds: Mapping[str, Mapping[str, NDArray[Any]]], folder: Path) -> ChipResult:
    vendor = chip.vendor
    if vendor == QUALCOMM:
        from quad.compile.litert.aot.qualcomm import compile_qualcomm  # imports LiteRT, an extra

        output = folder / f"{chip.name}.tflite"
        made = compile_qualcomm(model, chip, output, feeds)
        return ChipResult(chip=chip.name, vendor=vendor.name, state=EMULATED, file=output.name, ops=made.run.ops,
                          partitions=made.run.partitions, agreement_db=made.agreement_db)  # fmt: skip
    sdk = sdk_folder(vendor)
    if sdk is None:
        return ChipResult(chip=chip.name, vendor=vendor.name, state=NOT_COMPILED, note=missing_sdk(vendor))
    run = run_front_end(model, chip, sdk)
    accepted = run.whole and run.done
    note = "" if accepted else f"the plugin takes {run.selected} of {run.ops} operators in {run.partitions} partitions. {run.fault}".strip()
    return ChipResult(chip=chip.name, vendor=vendor.name, state=ACCEPTED if accepted else NOT_COMPILED, ops=run.ops,
                      partitions=run.partitions, note=note)  # fmt: skip
