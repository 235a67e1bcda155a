"""From times to figures: paired ratios, bytes, and each figure beside its bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FLOAT_MERGED, FLOAT_SHARED = "FP32, merged", "FP32, one for all"
INT_MERGED, INT_SHARED = "quantized, merged", "quantized, one for all"
SIDES = (FLOAT_MERGED, FLOAT_SHARED, INT_MERGED, INT_SHARED)
SWITCH_MS, FLAT, ROM, PLACE_SECONDS, PLACE_BYTES = 2.0, 1.3, 8.0, 180.0, 12e9
COLD_SWITCH, RESIDENT, GROWTH = 1.5, 1.05, 0.01
LORA_COST = {"quantized": 1.05, "FP32": 1.08}
SPEED = {"openvino": (2.3, 3.5), "ort": (1.7, 2.3)}
_HALF = 2


@dataclass(frozen=True)
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
        return self.value >= self.bar if self.least else self.value <= self.bar

    def to_json(self) -> dict[str, Any]:
        found = {"name": self.name, "value": self.value, "unit": self.unit, "bar": self.bar, "reached": self.reached}
        return found if self.aim is None else {**found, "aim": self.aim}

    def line(self) -> str:
        sign, aim = (">=" if self.least else "<="), "" if self.aim is None else f" (aim {self.aim:g})"
        return f"{self.name}: {self.value:.3g} {self.unit}".rstrip() + f"  bar {sign} {self.bar:g}{aim}"


def paired_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median of the ratios of times that were taken one after the other: a machine that slows down slows both."""
    return float(np.median(np.asarray(over) / np.asarray(under)))


def engine_figures(engine: str, times: Mapping[str, Sequence[float]], switch: Mapping[int, float]) -> list[Figure]:
    """Speed, the cost of LoRA as input, and switching, of one engine."""
    bar, aim = SPEED[engine]
    speed = paired_ratio(times[FLOAT_MERGED], times[INT_SHARED])
    found = [Figure(f"{engine}: quantized one for all, times faster than FP32 merged", speed, bar, "x", True, aim)]
    for kind, merged, shared in (("quantized", INT_MERGED, INT_SHARED), ("FP32", FLOAT_MERGED, FLOAT_SHARED)):
        cost = paired_ratio(times[shared], times[merged])
        found.append(Figure(f"{engine}: one for all over merged, {kind}", cost, LORA_COST[kind], "x"))
    if switch:
        found.append(Figure(f"{engine}: switch, {max(switch)} adapters registered", switch[max(switch)], SWITCH_MS, "ms"))
        found.append(Figure(f"{engine}: dearest switch over cheapest", max(switch.values()) / min(switch.values()), FLAT, "x"))
    return found


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
    found = []
    for row in rows:
        for kind in ("fp16", "int8"):
            name = f"ROM, 10 adapters of rank {row['rank']:.0f}, separate {kind.upper()} binaries over ours"
            found.append(Figure(name, row[f"{kind}_over_ours"], ROM, "x", True))
    return found


def switching_figures(found: Mapping[str, Any]) -> list[Figure]:
    """Switching from memory and from disk, what it takes of memory, and how much dearer the other ways are."""
    disk = {name: one["ratio"] for name, one in found["disk"].items()}
    warm, memory, slowest = found["warm"]["median_ms"], found["memory"], found["disk"]["later, cold, of the slots' rank"]["switch_ms"]
    return [
        Figure("switch from memory", warm, SWITCH_MS, "ms"),
        Figure("switch from a cold disk over reading the file", disk["later, cold, of the slots' rank"], COLD_SWITCH, "x"),
        Figure("the same where the file is hashed first", disk["first, cold, of the slots' rank"], COLD_SWITCH, "x"),
        Figure("diffusers' set_adapters over a switch from memory", found["diffusers"]["median_ms"] / warm, 1.0, "x", True),
        Figure("loading a merged graph over a switch, both from a cold disk", found["merged"]["cold_ms"] / slowest, 1.0, "x", True),
        Figure("the same, graph in the page cache, over a switch from memory", found["merged"]["warm_ms"] / warm, 1.0, "x", True),
        Figure("most resident memory over the budget", memory["most_bytes"] / memory["budget_bytes"], RESIDENT, "x"),
        Figure("its growth over the last half over the budget", memory["growth_bytes"] / memory["budget_bytes"], GROWTH, "x"),
    ]


def placement_figures(built: Mapping[str, Mapping[str, float]]) -> list[Figure]:
    """The longest placement with its passes, and the largest memory while it ran."""
    seconds = max(value for stage, value in built["seconds"].items() if ", place " in stage)
    return [
        Figure("placement and passes", seconds, PLACE_SECONDS, "s"),
        Figure("peak RSS meanwhile", max(built["peak_rss_bytes"].values()) / 1e9, PLACE_BYTES / 1e9, "GB"),
    ]
