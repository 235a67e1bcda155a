"""Every task of a bundle, each with its own adapter and sampler: `python examples/every_task.py BUNDLE OUT_DIR`.

One model stays in memory; a task is another set of buffers bound to the same graph. No torch is loaded.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw

from quad import QuadPipeline


def scene(size: int) -> tuple[Image.Image, Image.Image]:
    """A picture to start from, and a mask that is white where something is to go."""
    picture = Image.new("RGB", (size, size), "skyblue")
    ImageDraw.Draw(picture).rectangle((size // 4, size // 3, size // 2, size // 2), fill="red")
    mask = Image.new("L", (size, size), 0)
    ImageDraw.Draw(mask).rectangle((size // 4, size // 3, size // 2, size // 2), fill=255)
    return picture, mask


def main(bundle: str, directory: str) -> None:
    pipe = QuadPipeline.from_pretrained(bundle, memory="balanced")
    picture, mask = scene(pipe.bundle.manifest.size)
    Path(directory).mkdir(parents=True, exist_ok=True)
    for task, spec in pipe.tasks.items():
        inputs = {"image": picture} if spec.reads_picture else {}
        if spec.mask == "input":
            inputs["mask_image"] = mask
        out = pipe("a red house by day", task=task, seed=0, **inputs)
        out.images[0].save(Path(directory) / f"{task}.png")
        print(f"{task}: adapter {spec.adapter or 'none'}, {spec.sampler.kind}, {spec.sampler.steps} steps")


if __name__ == "__main__":
    main(*sys.argv[1:])
