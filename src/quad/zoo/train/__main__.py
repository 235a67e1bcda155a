"""`python -m quad.zoo.train`: train a reference model again, stage by stage, resumable.

Stages of toyland: vae -> cache -> text -> base -> assemble -> adapters -> samplers -> later -> speed -> kinds; of toyland-xl, which begins
with the shipped toyland: text -> vae -> cache -> base -> assemble -> adapters -> speed. Each reads what the ones before it left in `--out`,
and goes on where a killed run stopped. The recipe here is the one the shipped weights were made with, on shared cores in bf16; `--scale 8`
multiplies the samples of vae and base for a bigger machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quad.zoo.reference import MODELS, NAME
from quad.zoo.train.run import Run
from quad.zoo.train.stages import STAGES
from quad.zoo.train.xl.stages import XL_STAGES

app = typer.Typer(add_completion=False, help="Train a reference model.")


@app.command()
def train(
    model: Annotated[str, typer.Argument(help=f"one of: {', '.join(MODELS)}")] = NAME,
    out: Annotated[Path | None, typer.Option(help="where checkpoints, caches and the model directory go; out/MODEL by default")] = None,
    stage: Annotated[str, typer.Option(help="one of the model's, or all")] = "all",
    scale: Annotated[float, typer.Option(help="factor on the number of training samples")] = 1.0,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 2,
) -> None:
    """Run one stage or all of them in order."""
    recipes = dict(zip(MODELS, (STAGES, XL_STAGES), strict=True))
    if model not in recipes:
        raise typer.BadParameter(f"expected one of {', '.join(recipes)}, found {model!r}")
    recipe = recipes[model]
    if stage != "all" and stage not in recipe:
        raise typer.BadParameter(f"expected one of {', '.join(recipe)} or all, found {stage!r}")
    run = Run(out or Path("out") / model, scale, threads)
    for name in recipe if stage == "all" else [stage]:
        recipe[name](run)


if __name__ == "__main__":
    app()
