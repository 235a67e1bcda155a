"""A process that switches between many adapters under a small budget and tells what memory it has: `python switch_many.py DIRECTORY`.

Adapters take 3.8 MB in memory, enough to show beside an interpreter. Every second one is of half the slots' rank, so that it is padded.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quad.core.manifest import AdapterManifest, BundleManifest, LatentSpec, NoiseSchedule, TextSpec
from quad.core.profile import Profile
from quad.core.slots import Slot, SlotTable
from quad.core.storage.pack import write_pack
from quad.runtime.adapters.buffers import Buffers, padded_bytes, zero_buffers
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import Bundle
from quad.runtime.engines.engine import BoundSession
from quad.runtime.engines.graph import bind_buffers

RANK = 16
SLOTS = SlotTable(
    tuple(Slot(path=f"layer{i}", kind="linear", in_features=1000 + i, out_features=1000 - i, rank=RANK, dtype="int16") for i in range(60))
)
ADAPTERS, BUDGET, SWITCHES, WARM_UP = 24, 3, 300, 60


class Session(BoundSession):
    """Holds what it is bound to, as every engine does."""

    threads = 1

    def _wrap(self, array: NDArray[Any]) -> Any:
        return array

    def _new_handle(self) -> dict[str, Any]:
        return {}

    def _put(self, handle: dict[str, Any], name: str, value: Any) -> None:
        handle[name] = value

    def _execute(self, handle: dict[str, Any]) -> list[NDArray[Any]]:
        raise NotImplementedError


def resident_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def write_adapter(path: Path, seed: int) -> None:
    rank, draw = RANK // (1 + seed % 2), np.random.default_rng(seed)
    tensors = {}
    for slot in SLOTS.slots:
        tensors[slot.a_name] = draw.integers(1, 9, (rank, slot.in_features), np.int16)
        tensors[slot.b_name] = draw.integers(1, 9, (slot.out_features, rank), np.int16)
    write_pack(
        path,
        AdapterManifest(
            name="ink",
            format_version=1,
            rank=rank,
            bits=16,
            size_bytes=0,
            sha256="",
            parents={"slots": SLOTS.digest, "profile": Profile(encodings={}).digest},
        ),
        tensors,
    )


def main() -> None:
    root = Path(sys.argv[1])
    manifest = BundleManifest(
        format_version=1,
        name="phone",
        target="cpu",
        precision="w8a16",
        size=64,
        components={},
        files={},
        adapters=(),
        tasks={},
        schedule=NoiseSchedule(),
        latent=LatentSpec(channels=4, factor=8, scale=(), shift=()),
        text=TextSpec(length=7, pad_id=0, hidden=8),
        engines=("ort",),
        parents={},
        quad_version="",
    )
    zeros = zero_buffers(SLOTS)
    one = padded_bytes(zeros, zeros)
    store = AdapterStore(Bundle(root=root, manifest=manifest, slots=SLOTS, profile=Profile(encodings={})), BUDGET * one)
    for number in range(ADAPTERS):
        write_adapter(root / f"{number}.qpack", number)
        store.register(root / f"{number}.qpack", str(number))
    shapes = SLOTS.input_shapes()
    session = Session("unet", shapes, dict.fromkeys(shapes, np.int16))

    bound = store.zeros  # held as long as it is bound, so that the store knows it to be in use

    def bind(buffers: Buffers) -> None:
        nonlocal bound
        bind_buffers(session, buffers, shapes)
        bound = buffers

    def switch() -> None:
        bind(store.buffers(str(random.randrange(ADAPTERS))))

    def rest() -> int:
        bind(store.zeros)
        store.close()
        return resident_bytes()

    random.seed(0)
    for _ in range(WARM_UP):
        switch()
    base, found = rest(), []
    for _ in range(SWITCHES):
        switch()
        found.append(resident_bytes() - base)
    print(json.dumps({"budget_bytes": BUDGET * one, "adapter_bytes": one, "over_base_bytes": found, "after_bytes": rest() - base}))


if __name__ == "__main__":
    main()
