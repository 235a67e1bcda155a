"""A LoRA file read for one base, as `quad build` would read it: what each model gets, what is left out, and what a build says to it."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from quad.cli.extras import check_build
from quad.cli.shared_options import model_directory
from quad.core.errors import QuadError


def for_base(name: str, path: Path, base_name: str, vae: Path | None = None) -> tuple[dict[str, Any], list[str]]:
    """Fields of `details` in `quad inspect --base --json`, and the same for people.

    Args:
        base_name, vae: a model, and an autoencoder in place of its own, as `quad build` takes them.

    Raises:
        InputError, UnsupportedError: the LoRA is for another base even where anything may be left out, or the base cannot be opened.
    """
    with redirect_stdout(sys.stderr):  # libraries print; stdout is for the result alone
        check_build("quad inspect --base")
        from quad.lora.low_rank import RankLimits
        from quad.lora.report.parts import parts_of
        from quad.model.adapters import layout_of, read_adapter
        from quad.model.base.open import BaseOptions, open_model

        base = open_model(model_directory(base_name), BaseOptions(vae=vae))
        read = partial(read_adapter, name, path, base.unet, text_encoder=base.text_encoder)
        refusal = None
        try:
            adapter = read()
        except QuadError as error:
            refusal = str(error)
            adapter = read(allow_unused=True, limits=RankLimits(None, 0.0))
        adapter = adapter.for_base(base.schedule.prediction)
        parts = parts_of(adapter, layout_of(base.unet).layers, layout_of(base.text_encoder).layers)
    applied = sum(part.tensors for part in parts.values())
    lines = [part.line(component) for component, part in parts.items()]
    lines += [f"applied {applied} tensors", *(f"note: {note}" for note in adapter.notes)]
    lines.append("quad build takes it as it is" if refusal is None else f"quad build refuses it as it is: {refusal}")
    details = {
        "parts": {component: part.to_json() for component, part in parts.items()},
        "applied": applied,
        "notes": list(adapter.notes),
        "refusal": refusal,
    }
    return details, lines
