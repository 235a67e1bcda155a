"""A LoRA that comes after its bundle was frozen: `python examples/later_lora.py BUNDLE NAME=PATH OUT.qpack`.

It is checked slot by slot, tried on the bundle's own graph and written as a pack, or refused with the reasons. A
device loads the pack without torch.
"""

from __future__ import annotations

import sys
from pathlib import Path

import quad
from quad.admit.request import AdaptRequest
from quad.core.errors import CompatibilityError


def main(bundle: str, adapter: str, output: str) -> None:
    name, _, file = adapter.partition("=")
    try:
        quad.adapt(AdaptRequest(bundle=Path(bundle), name=name, adapter=Path(file), output=Path(output)))
    except CompatibilityError as error:
        sys.exit(f"refused: {error}")

    pipe = quad.QuadPipeline.from_pretrained(bundle)
    pipe.load_lora_weights(output, adapter_name=name)
    pipe.set_adapters(name)
    pipe("a red house by day", task="text-to-image", seed=0).images[0].save(Path(output).with_suffix(".png"))
    print(f"{output} fits {bundle}")


if __name__ == "__main__":
    main(*sys.argv[1:])
