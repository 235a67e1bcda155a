"""The peers, whose turn it is, and from times to a table: pure functions of names and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.rig.figures import paired_ratio

from quad.evaluate.bench.timing import median

AT_ONCE = 3  # sides in memory beside the base: float graphs take up to 8 GB each while they load
GIGA = 1e9
COLUMNS = ("", "latents", "ms a call", "least", "times quad's", "the same, CPU time", "turns", "peak memory", "switch")


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One side.

    Args:
        title: in tables and pictures.
        worker: module of `benchmarks.rig.peers`.
        words: behind the worker's own: of a graph engine, precision, precision of floats, kind and side; else the mode.
        environment: name of its requirements list; empty for quad's own interpreter.
        files: names of `files.WRITERS` that it reads.
        ours: it is quad's.
        slow: it takes few turns.
        note: what differs from the others' work.
    """

    title: str
    worker: str
    words: tuple[str, ...] = ()
    environment: str = ""
    files: tuple[str, ...] = ()
    ours: bool = False
    slow: bool = False
    note: str = ""


def _graph(title: str, engine: str, floats: str, kind: str) -> Peer:
    """A quantized graph for all adapters, or where its kind is `float` one with a LoRA merged in."""
    if kind == "float":
        words, note = (engine, "float", floats, kind, "merged"), "a graph for each LoRA"
        return Peer(title=f"merged float graph, {title}", worker="graph", words=words, note=note)
    return Peer(title=f"quad mixed:80, {title}", worker="graph", words=(engine, "mixed:80", floats, kind, "one_for_all"), ours=True)


def _diffusers(title: str, mode: str, *, slow: bool, note: str = "three adapters loaded") -> Peer:
    return Peer(
        title=f"diffusers + PEFT, {title}",
        worker="diffusers_peft",
        words=(mode,),
        environment="diffusers",
        files=("pipeline", "peft"),
        slow=slow,
        note=note,
    )


PEERS: Mapping[str, Peer] = {
    "quad-openvino": _graph("OpenVINO, floats f32", "openvino", "f32", "openvino"),
    "quad-openvino-bf16": _graph("OpenVINO, floats bf16", "openvino", "bf16", "openvino"),
    "quad-ort": _graph("ONNX Runtime", "ort", "f32", "cpu"),
    "merged-openvino-bf16": _graph("OpenVINO, bf16", "openvino", "bf16", "float"),
    "merged-openvino-f32": _graph("OpenVINO, f32", "openvino", "f32", "float"),
    "merged-ort": _graph("ONNX Runtime, f32", "ort", "f32", "float"),
    "genai": Peer(
        title="OpenVINO GenAI, adapters, its precision",
        worker="genai",
        environment="genai",
        files=("pipeline", "kohya", "openvino"),
        note="three adapters registered",
    ),
    "diffusers-bf16": _diffusers("bf16", "bf16", slow=False),
    "diffusers-f32": _diffusers("f32", "f32", slow=True),
    "diffusers-compile": _diffusers("torch.compile", "compile", slow=True, note="three adapters loaded; a switch compiles anew"),
    "sdcpp": Peer(
        title="stable-diffusion.cpp, q8_0, LoRA at run",
        worker="sdcpp",
        environment="sdcpp",
        files=("pipeline", "kohya", "taesd", "sdcpp"),
        slow=True,
        note="memory of the whole pipeline",
    ),
}


def turn_order(sides: Sequence[str], turn: int) -> list[str]:
    """Whose turn it is in round `turn`, counted from 0: A B C, then C B A, so that a machine that drifts favours nobody."""
    return list(sides) if turn % 2 == 0 else list(reversed(sides))


def groups_of(names: Sequence[str], base: str, peers: Mapping[str, Peer] = PEERS) -> list[list[str]]:
    """Sides that are in memory together, the base first in each; slow ones by themselves, as they take fewer turns."""
    groups = []
    for pace in (False, True):
        others = [name for name in names if name != base and peers[name].slow == pace]
        groups += [[base, *others[first : first + AT_ONCE]] for first in range(0, len(others), AT_ONCE)]
    return groups or [[base]]


def side_result(turns: Sequence[Sequence[float]], base: Sequence[Sequence[float]]) -> dict[str, Any]:
    """What the turns of one side say.

    Args:
        turns, base: ms of its call by the clock and of all processors, and the base's in the same round.
    """
    (times, work), (base_times, base_work) = zip(*turns, strict=True), zip(*base, strict=True)
    return {
        "median_ms": median(list(times)),
        "least_ms": min(times),
        "ratio": paired_ratio(times, base_times),
        "cpu_ms": median(list(work)),
        "cpu_ratio": paired_ratio(work, base_work),
        "turns_ms": list(times),
        "turns_cpu_ms": list(work),
    }


def merged_results(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Results by size of the latent and name: those of now go before those of an earlier run."""
    return {latent: {**earlier.get(latent, {}), **now.get(latent, {})} for latent in sorted({*earlier, *now}, key=int)}


def table(results: Mapping[str, Mapping[str, Any]], peers: Mapping[str, Peer] = PEERS) -> str:
    """Markdown: a row for each side that was measured, by size, in the order of `PEERS`."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for latent, sides in results.items():
        lines += ["| " + " | ".join(_row(peers[name].title, latent, sides[name])) + " |" for name in peers if name in sides]
    return "\n".join(lines)


def _row(title: str, latent: str, side: Mapping[str, Any]) -> list[str]:
    return [
        title,
        f"{latent}x{latent}",
        f"{side['median_ms']:.0f}",
        f"{side['least_ms']:.0f}",
        f"{side['ratio']:.2f}",
        f"{side['cpu_ratio']:.2f}",
        str(len(side["turns_ms"])),
        f"{side['peak_bytes'] / GIGA:.1f} GB",
        _switch(side),
    ]


def _switch(side: Mapping[str, Any]) -> str:
    ms = side["switch_ms"]
    if ms is not None:
        return f"{ms:.2f} ms" if ms < 10 else f"{ms:.0f} ms"
    return f"another graph, {side['load_s']:.0f} s" if side["is_graph"] else "not timed"
