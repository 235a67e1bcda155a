"""From times to figures: paired ratios, bytes, and each figure beside its bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FLOAT_MERGED, FLOAT_SHARED, BF16_MERGED = "FP32, merged", "FP32, one for all", "bf16, merged"
INT_MERGED, INT_SHARED = "quantized, merged", "quantized, one for all"
SWITCH_MS, FLAT, ROM, PLACE_SECONDS, PLACE_BYTES = 2.0, 1.3, 8.0, 180.0, 12e9
BETWEEN_MS = {"ort": 0.2, "openvino": 0.6}  # a switch between two steps, by engine
COLD_SWITCH, RESIDENT, GROWTH, NO_SLOWER = 1.5, 1.05, 0.01, 1.02
LORA_COST = {"quantized": 1.05, "FP32": 1.08}
SPEED = {("openvino", 32): 2.3, ("openvino", 64): 2.3, ("ort", 32): 2.8, ("ort", 64): 2.6}
BEST_FLOAT, BEST_FLOAT_AIM, PEAK = 1.6, 1.8, {32: 0.0, 64: 0.7}
OPERATIONS = {32: 180.2e9, 64: 803.3e9}  # multiplications and additions of one call, as torch's FlopCounterMode counts them
_HALF = 2


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure and its bar.

    Args:
        least: is the bar a least value, not a largest one.
        aim: what is hoped for beyond the bar.
    """

    name: str
    value: float
    bar: float
    unit: str = ""
    least: bool = False
    aim: float | None = None

    @property
    def reached(self) -> bool:
        """Is the value on the right side of its bar."""
        return self.value >= self.bar if self.least else self.value <= self.bar

    def to_json(self) -> dict[str, Any]:
        """The figure and its bar as an entry of a report."""
        facts = {"name": self.name, "value": self.value, "unit": self.unit, "bar": self.bar, "reached": self.reached}
        return facts if self.aim is None else {**facts, "aim": self.aim}

    def line(self) -> str:
        """The figure and its bar as text."""
        sign, aim = (">=" if self.least else "<="), "" if self.aim is None else f" (aim {self.aim:g})"
        return f"{self.name}: {self.value:.3g} {self.unit}".rstrip() + f"  bar {sign} {self.bar:g}{aim}"


def paired_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median of the ratios of times that were taken one after the other: a machine that slows down slows both."""
    return float(np.median(np.asarray(over) / np.asarray(under)))


def speed_figures(engine: str, latent: int, times: Mapping[str, Sequence[float]], peak: float) -> list[Figure]:
    """Speed against the float graphs of one engine, and its share of what the processor can do.

    Args:
        times: ms of each side, turn by turn; with bf16 where the engine has it here.
        peak: operations a second of the engine's own int8 product.
    """
    ours = times[INT_SHARED]
    figures = [
        Figure(name=f"{engine}: quantized one for all, times faster than {side}", value=paired_ratio(times[side], ours), bar=bar, unit="x",
               least=True, aim=aim)
        for side, bar, aim in ((FLOAT_MERGED, SPEED[engine, latent], None), (BF16_MERGED, BEST_FLOAT, BEST_FLOAT_AIM))
        if side in times
    ]  # fmt: skip
    share = OPERATIONS[latent] / (float(np.median(ours)) / 1e3) / peak
    return [*figures, Figure(name=f"{engine}: share of its int8 peak", value=share, bar=PEAK[latent], least=True)]


def cost_figures(engine: str, times: Mapping[str, Sequence[float]], switch: Mapping[int, float]) -> list[Figure]:
    """The cost of LoRA as input, and switching, of one engine."""
    figures = []
    for kind, merged, shared in (("quantized", INT_MERGED, INT_SHARED), ("FP32", FLOAT_MERGED, FLOAT_SHARED)):
        cost = paired_ratio(times[shared], times[merged])
        figures.append(Figure(name=f"{engine}: one for all over merged, {kind}", value=cost, bar=LORA_COST[kind], unit="x"))
    if switch:
        figures.append(
            Figure(name=f"{engine}: switch, {max(switch)} adapters registered", value=switch[max(switch)], bar=SWITCH_MS, unit="ms")
        )
        figures.append(
            Figure(name=f"{engine}: dearest switch over cheapest", value=max(switch.values()) / min(switch.values()), bar=FLAT, unit="x")
        )
    return figures


def rom_rows(graph: int, parameters: int, slot_sizes: int, bits: int, adapters: int = 10) -> list[dict[str, float]]:
    """Bytes of ten binaries against one graph with ten adapters, by the rank of all slots.

    Args:
        graph: bytes of the quantized graph.
        parameters: of the network: two bytes each in an FP16 binary.
        slot_sizes: sum of in and out features over all slots, which is an adapter's size for each rank.
        bits: of an adapter's integers.
    """
    rows = []
    for rank in (16, 32, 64):
        ours = graph + adapters * rank * slot_sizes * bits // 8
        row = {"rank": float(rank), "ours": float(ours), "fp16": float(adapters * _HALF * parameters), "int8": float(adapters * graph)}
        rows.append({**row, "fp16_over_ours": row["fp16"] / ours, "int8_over_ours": row["int8"] / ours})
    return rows


def rom_figures(rows: Sequence[Mapping[str, float]]) -> list[Figure]:
    """At every rank, against binaries of either kind; adapters of mixed ranks lie between."""
    figures = []
    for row in rows:
        for kind in ("fp16", "int8"):
            name = f"ROM, 10 adapters of rank {row['rank']:.0f}, separate {kind.upper()} binaries over ours"
            figures.append(Figure(name=name, value=row[f"{kind}_over_ours"], bar=ROM, unit="x", least=True))
    return figures


def switching_figures(measured: Mapping[str, Any]) -> list[Figure]:
    """Switching from memory and from disk, what it takes of memory, and how much dearer the other ways are."""
    disk = {name: turn["ratio"] for name, turn in measured["disk"].items()}
    kinds = measured["kinds"]
    warm, memory = measured["warm"]["median_ms"], measured["memory"]
    slowest = measured["disk"]["later, cold, of the slots' rank"]["switch_ms"]
    return [
        Figure(name="switch from memory", value=warm, bar=SWITCH_MS, unit="ms"),
        *(
            Figure(name=f"the same between two steps, {engine}", value=times["median_ms"], bar=BETWEEN_MS[engine], unit="ms")
            for engine, times in measured["between"].items()
        ),
        Figure(
            name="the same with normalised slots over searched ones, in turns",
            value=kinds["normalised"]["few_ms"] / kinds["searched"]["few_ms"],
            bar=NO_SLOWER,
            unit="x",
        ),
        Figure(
            name="with many adapters in memory over a few",
            value=kinds["normalised"]["many_ms"] / kinds["normalised"]["few_ms"],
            bar=FLAT,
            unit="x",
        ),
        Figure(
            name="switch from a cold disk over reading the file", value=disk["later, cold, of the slots' rank"], bar=COLD_SWITCH, unit="x"
        ),
        Figure(name="the same where the file is hashed first", value=disk["first, cold, of the slots' rank"], bar=COLD_SWITCH, unit="x"),
        Figure(name="the same of half the slots' rank", value=disk["first, cold, of half of it"], bar=COLD_SWITCH, unit="x"),
        Figure(
            name="diffusers' set_adapters over a switch from memory",
            value=measured["diffusers"]["median_ms"] / warm,
            bar=1.0,
            unit="x",
            least=True,
        ),
        Figure(
            name="loading a merged graph over a switch, both from a cold disk",
            value=measured["merged"]["cold_ms"] / slowest,
            bar=1.0,
            unit="x",
            least=True,
        ),
        Figure(
            name="the same, graph in the page cache, over a switch from memory",
            value=measured["merged"]["warm_ms"] / warm,
            bar=1.0,
            unit="x",
            least=True,
        ),
        Figure(name="most resident memory over the budget", value=memory["most_bytes"] / memory["budget_bytes"], bar=RESIDENT, unit="x"),
        Figure(
            name="its growth over the last half over the budget",
            value=memory["growth_bytes"] / memory["budget_bytes"],
            bar=GROWTH,
            unit="x",
        ),
    ]


def placement_figures(built: Mapping[str, Mapping[str, float]]) -> list[Figure]:
    """The longest placement with its passes, and the largest memory while it ran."""
    seconds = max(value for stage, value in built["seconds"].items() if ", place " in stage)
    return [
        Figure(name="placement and passes", value=seconds, bar=PLACE_SECONDS, unit="s"),
        Figure(name="peak RSS meanwhile", value=max(built["peak_rss_bytes"].values()) / 1e9, bar=PLACE_BYTES / 1e9, unit="GB"),
    ]
