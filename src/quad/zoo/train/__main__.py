"""`python -m quad.zoo.train`: train the reference model again, stage by stage, resumable.

Stages: vae -> cache -> text -> base -> assemble -> adapters -> samplers -> later -> speed -> kinds. Each reads what the ones before
it left in `--out`, and goes on where a killed run stopped. The recipe here is the one the shipped weights were made with, on two cores in
bf16; `--scale 8` multiplies the samples of vae and base for a bigger machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quad.zoo.train import stages

app = typer.Typer(add_completion=False, help="Train the Toyland reference model.")


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="where checkpoints, caches and the model directory go")] = Path("out/toyland"),
    stage: Annotated[str, typer.Option(help=f"one of: {', '.join(stages.STAGES)}, all")] = "all",
    scale: Annotated[float, typer.Option(help="factor on the number of training samples")] = 1.0,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 2,
) -> None:
    """Run one stage or all of them in order."""
    if stage != "all" and stage not in stages.STAGES:
        raise typer.BadParameter(f"expected one of {', '.join(stages.STAGES)} or all, found {stage!r}")
    run = stages.Run(out, scale, threads)
    for name in stages.STAGES if stage == "all" else [stage]:
        stages.STAGES[name](run)


if __name__ == "__main__":
    app()
