"""`quad bake`: adapters of a bundle merged into its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from quad.cli.extras import check_export
from quad.cli.options import weighted_names
from quad.cli.shared_options import BundleDir, EngineName
from quad.cli.show import Json, note, result, size, stage_bar
from quad.core.errors import UsageError, mismatch

if TYPE_CHECKING:
    from quad.export.bake.request import BakeResult, WeightBits

MergedNames = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter", help="An adapter of the bundle, or a pack for it, and its weight; repeat it to merge several.",
        metavar="NAME[:WEIGHT]", show_default=False,
    ),
]  # fmt: skip
NewBundle = Annotated[Path, typer.Option("-o", "--output", help="The new bundle.", metavar="BUNDLE", show_default=False)]
Bits = Annotated[
    int | None,
    typer.Option(
        "--weight-bits", help="Bits of changed weights in layers that compute in floats: 16 are nearly exact, and twice as large as 8.",
        metavar="8|16", show_default="as they are",
    ),
]  # fmt: skip


def bake(
    bundle: BundleDir,
    output: NewBundle,
    adapter: MergedNames = None,
    weight_bits: Bits = None,
    engine: EngineName = "auto",
    as_json: Json = False,
) -> None:
    """Merge adapters into a bundle's weights: no slots, no cost at a step, plain ONNX graphs."""
    weights = weighted_names("--adapter", adapter or [])
    if weight_bits not in (None, 8, 16):
        raise UsageError(mismatch("--weight-bits", "8 or 16", weight_bits, "choose one of these"))
    with stage_bar() as progress:
        check_export("quad bake")
        from quad.export.bake.bake import bake as merge
        from quad.export.bake.request import BakeRequest

        bits = cast("WeightBits | None", weight_bits)
        request = BakeRequest(bundle=bundle, adapters=weights, output=output, weight_bits=bits, engine=engine)
        merged = merge(request, progress)
    for line in merged.notes:
        note(line)
    result(merged.to_json(), as_json, _lines(merged))


def _lines(merged: BakeResult) -> list[str]:
    names = " + ".join(name if weight == 1 else f"{name}:{weight:g}" for name, weight in merged.weights.items())
    total = size(sum(entry.size_bytes for entry in merged.manifest.files.values()))
    lines = [f"{names} merged into {merged.layers} layers; no weight is off by more than half a step ({merged.worst:.3f} of it at worst)"]
    if merged.widened:
        lines.append(f"the steps of {merged.widened} channels grew, so that nothing is clipped")
    for component, like in merged.likeness.items():
        effect = f"the adapters' effect {like.effect_db:.1f} dB, gain {like.effect_gain:.3f}"
        times = f"{like.merged_ms:.1f} ms a call, with slots {like.slots_ms:.1f}"
        lines.append(f"{component}: {like.output_db:.1f} dB from the graph with slots on {like.calls} calls, {effect}; {times}")
    lines.append(f"tasks {', '.join(sorted(merged.manifest.tasks))}")
    if merged.left_out:
        lines.append(f"left out, of other adapters: {', '.join(merged.left_out)}")
    return [*lines, f"{merged.bundle}, {total}, {merged.seconds:.0f} s"]
