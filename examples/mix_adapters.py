"""Two adapters in one picture, at several strengths: `python examples/mix_adapters.py BUNDLE FIRST SECOND OUT.png`.

The graph is not compiled or loaded again: a mix is computed on the integers of the slots.
"""

from __future__ import annotations

import sys

from PIL import Image

from quad import QuadPipeline

WEIGHTS = (0.0, 0.25, 0.5)


def main(bundle: str, first: str, second: str, output: str) -> None:
    pipe = QuadPipeline.from_pretrained(bundle)
    pictures = []
    for weight in WEIGHTS:
        pipe.set_adapters([first, second], weights=[0.5 - weight, weight])
        out = pipe("a red house by day", task="text-to-image", seed=1)
        pictures.append(out.images[0])
        print(f"{first} {0.5 - weight}, {second} {weight}", *pipe.notes)
    pipe.disable_lora()  # the base again, bit for bit

    strip = Image.new("RGB", (sum(picture.width for picture in pictures), pictures[0].height))
    for column, picture in enumerate(pictures):
        strip.paste(picture, (column * picture.width, 0))
    strip.save(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
