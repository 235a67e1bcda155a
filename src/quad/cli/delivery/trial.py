"""How a new pack is tried in its bundle before anything runs from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quad.runtime.pipeline import QuadPipeline


def smoke_run(bundle: Path, engine: str) -> Callable[[Path], None]:
    """Tries a pack in its bundle: it has to load and bind, and the U-Net has to give the pack's golden output with it.

    Where the pack has none, one step of a picture has to be of finite numbers.
    """

    def smoke(pack: Path) -> None:
        import msgspec

        from quad.core.picture_size import graph_name
        from quad.core.slots import UNET
        from quad.runtime.golden_outputs import check_golden
        from quad.runtime.pipeline import QuadPipeline

        pipe = QuadPipeline.from_pretrained(bundle, engine=engine, verify=False, memory="minimal", float_type="f32")
        name = pipe.load_lora_weights(pack)
        pipe.set_adapters(name)
        manifest = pipe.adapter_manifest(name)
        if manifest.golden is msgspec.UNSET:
            _one_step(pipe)
        else:
            check_golden(pipe.graph(graph_name(UNET, None, manifest.group_number)), pipe.bundle, manifest)

    return smoke


def _one_step(pipe: QuadPipeline) -> None:
    import numpy as np

    task, spec = min(pipe.tasks.items(), key=lambda item: item[1].reads_picture)
    grid = pipe.bundle.manifest.picture_size.grid
    image = np.zeros((*grid, 3), np.uint8) if spec.reads_picture else None
    mask = np.full(grid, 255, np.uint8) if spec.reads_picture else None
    pipe(task=task, image=image, mask_image=mask, num_inference_steps=None if spec.sampler.kind == "olss" else 1)
