"""The object of `quad bench --json`, `bench.json`: one struct for each of its parts (docs/formats.md). Times are ms, sizes bytes."""

from __future__ import annotations

import msgspec


class StageBegins(msgspec.Struct, frozen=True):
    """A line on stderr of a measuring process: the stage that begins, and the share of the whole done in [0, 1]."""

    stage: str
    share: float


class CallTimes(msgspec.Struct, frozen=True):
    """Single calls."""

    median_ms: float
    p95_ms: float


class ResidentTimes(CallTimes, frozen=True):
    """Warm switches with a number of adapters in memory.

    Args:
        median_ms, p95_ms: between the first and the last of them.
        in_turn_ms: median of switches to each in turn, of which a processor's cache remembers less the more there are.
    """

    in_turn_ms: float


class SwitchTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Another adapter instead of the one bound: warm finds it in memory, cold reads and checks its file.

    Args:
        graph_ms: the U-Net of another profile loaded, when a picture first needs it; unset where there is one profile.
    """

    warm_ms: float
    cold_ms: float
    warm_p95_ms: float
    graph_ms: float | msgspec.UnsetType = msgspec.UNSET


class Switching(SwitchTimes, frozen=True, kw_only=True):
    """`switch` of `bench.json`.

    Args:
        resident: by how many adapters are in memory.
        flatness: the dearest median of `resident` over the cheapest; 1 is flat, None where there is one or none.
    """

    resident: dict[str, ResidentTimes]
    flatness: float | None


class TaskTimes(msgspec.Struct, frozen=True, kw_only=True):
    """One column of the paper's tables 2 and 3: medians of whole pictures, the task's adapter already bound.

    Args:
        vae_encoder_ms: None where no picture is read.
        unet_step_ms: both sides of the guidance.
        peak_ram_bytes: while it ran.
    """

    sampler: str
    steps: int
    guidance: float
    adapter: str | None
    text_encoder_ms: float
    vae_encoder_ms: float | None
    unet_step_ms: float
    vae_decoder_ms: float
    end_to_end_ms: float
    peak_ram_bytes: int


class SeparateBytes(msgspec.Struct, frozen=True, kw_only=True):
    """One graph for all against one binary per adapter, with so many adapters.

    Args:
        separate: each task brings a whole pipeline, as the paper counts.
        separate_unet: they share all but the U-Net, which is the least that separate binaries can take.
        ratio, ratio_unet: these over `one_for_all`.
    """

    adapters: int
    one_for_all: float
    separate: float
    separate_unet: float
    ratio: float
    ratio_unet: float


class RomBytes(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes on disk: shared by all tasks, of each graph among them, and of each adapter."""

    shared: int
    components: dict[str, int]
    adapters: dict[str, int]
    separate: list[SeparateBytes]


class MemoryPlanCosts(msgspec.Struct, frozen=True, kw_only=True):
    """A memory plan: its peak, and ms to open (nothing is verified) and of the first and the next picture of `task` in a few steps."""

    peak_ram_bytes: int
    open_ms: float
    first_ms: float
    next_ms: float
    task: str


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """CPU, cores, threads and versions."""

    cpu: str
    cores: int
    usable_cores: int
    threads: int
    system: str
    versions: dict[str, str]


class BundleFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The bundle that was measured: `picture_size` is `WIDTHxHEIGHT` of its pictures, `size` their width."""

    name: str
    target: str
    precision: str
    size: int
    picture_size: str


class BenchResult(msgspec.Struct, frozen=True, kw_only=True):
    """KPIs of a bundle on one machine.

    Args:
        components: single calls of each graph; the U-Net's is one step without guidance.
        memory: by plan, each measured in a process of its own; left out where that was not done.
    """

    engine: str
    threads: int
    machine: Machine
    bundle: BundleFacts
    load_ms: float
    components: dict[str, CallTimes]
    end_to_end_ms: dict[str, float]
    tasks: dict[str, TaskTimes]
    switch: Switching
    rom_bytes: RomBytes
    peak_ram_bytes: int
    memory: dict[str, MemoryPlanCosts] | msgspec.UnsetType = msgspec.UNSET
