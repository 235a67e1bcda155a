"""`quad eval`: a bundle as its engine runs it against the full-precision model it was built from. The paper's table 1 on our tasks.

open both -> refuse what does not belong together -> pictures of both sides -> adapter effect -> figures
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quad.core.errors import CompatibilityError, InputError, UsageError, mismatch
from quad.core.storage.files import write_bytes
from quad.core.storage.pack import parse_adapter_manifest
from quad.evaluate.figures.effect import bundle_effects
from quad.evaluate.figures.quality import check_world, find_adapters
from quad.evaluate.figures.reference import Reference
from quad.evaluate.figures.runs import Show, TaskRun, evaluate_all, run_tasks
from quad.evaluate.page.output import save_pictures, write_json
from quad.evaluate.page.report import DIFFERENCE_GAIN, Plots, Report, render
from quad.evaluate.page.tables import chapter, effect_table, gain_chart, pairs_table, quality_table, truth_loss_table
from quad.lora.file import find_lora, open_lora
from quad.runtime.bundle import Bundle
from quad.runtime.pipeline import QuadPipeline

ZERO_PICTURES = 8  # samples a task whose pictures are made again with the zero adapter
EFFECT_LEAD = "At the U-Net's output, over single calls along full-precision runs. Below 1 the adapter is weaker than it was trained to be."
SHARES = {"run": 0.8, "effect": 0.1, "score": 0.1}


@dataclass(frozen=True)
class Question:
    """What to compare.

    Args:
        model: the diffusers directory of the full-precision model.
        adapters: name -> LoRA file; of those that are not named here, the model directory's own.
        n: held-out samples a task.
        engine: `auto`, or a name.
    """

    bundle: Path
    model: Path
    adapters: Mapping[str, Path]
    n: int = 64
    engine: str = "auto"

    def check(self) -> None:
        """Refuse before anything is loaded.

        Raises:
            UsageError: `n` is below 1. InputError, UnsupportedError: as `check_world`.
        """
        if self.n < 1:
            raise UsageError(mismatch("--n", "1 or more", self.n, "choose a larger one"))
        check_world(self.model)


@dataclass(frozen=True)
class Answer:
    """The figures of `quad eval --json`, with the pictures they were taken from."""

    evaluation: Mapping[str, Any]
    runs: Sequence[TaskRun]
    precision: str


def check_parents(bundle: Bundle, model: Path, found: str, adapters: Mapping[str, Path]) -> None:
    """A bundle is compared with its own model and its own LoRAs only: digests, never names.

    Args:
        found: digest of the model.

    Raises:
        CompatibilityError: the model or an adapter is another one.
    """
    expected = bundle.manifest.parents.get("base", "none")
    if found != expected:
        raise CompatibilityError(
            mismatch(f"model {model}", f"digest {expected[:8]}, of which the bundle was built", found[:8], "give that one")
        )
    for name, file in adapters.items():
        text, _ = bundle.adapter_files(name)
        expected = parse_adapter_manifest(str(text), text.read_bytes()).parents.get("source", "none")
        found = open_lora(file).digest
        if found != expected:
            raise CompatibilityError(
                mismatch(f"adapter {name!r}, {file}", f"digest {expected[:8]}, as in the bundle", found[:8], "give that file")
            )


def _adapters(question: Question, bundle: Bundle) -> dict[str, Path]:
    """The LoRA file of every adapter that the bundle ships."""
    known = {**find_adapters(question.model), **question.adapters}
    if missing := [name for name in bundle.manifest.adapters if name not in known]:
        raise InputError(
            mismatch(f"adapter {missing[0]!r} of the bundle", "its LoRA file", "none", f"name it: --adapter {missing[0]}=FILE")
        )
    return {name: find_lora(known[name]) for name in bundle.manifest.adapters}


def evaluate_bundle(question: Question, show: Show) -> Answer:
    """Both sides of every task that the bundle has, and everything measured on them.

    Args:
        show: called with what is being done and the share of the whole done.

    Raises:
        UsageError, UnsupportedError: as `Question.check`.
        InputError: no bundle, no model, or no file of an adapter.
        RefusedError: the bundle was changed, or the model or an adapter is not the one it was built from.
        BackendError: no engine can run the bundle.
    """
    question.check()
    show("open", 0.0)
    pipe = QuadPipeline.from_pretrained(question.bundle, engine=question.engine)
    adapters = _adapters(question, pipe.bundle)
    reference = Reference(question.model, adapters)
    check_parents(pipe.bundle, question.model, reference.digest, adapters)
    runs = run_tasks(reference, pipe, question.n, lambda what, share: show(f"run {what}", share * SHARES["run"]), ZERO_PICTURES)
    show("adapter effect", SHARES["run"])
    effects = bundle_effects(pipe, reference, question.model, adapters)
    before = SHARES["run"] + SHARES["effect"]
    evaluation = evaluate_all(
        runs, reference, pipe.engine, effects, lambda what, share: show(f"score {what}", before + share * SHARES["score"])
    )
    show("done", 1.0)
    return Answer(evaluation, runs, pipe.bundle.manifest.precision)


def make_page(answer: Answer) -> Report:
    """The page's content."""
    tasks = answer.evaluation["tasks"]
    gains = [entry["effect_gain"] for entry in tasks.values() if entry["effect_gain"] is not None]
    facts = [
        ("worst task against FP32", f"{min((entry['psnr'] for entry in tasks.values()), default=0.0):.1f} dB"),
        ("lowest SSIM", f"{min((entry['ssim'] for entry in tasks.values()), default=0.0):.3f}"),
        ("adapter effect gain", f"{min(gains):.3f} to {max(gains):.3f}" if gains else "none"),
        ("precision", answer.precision),
        ("engine", answer.evaluation["engine"]),
    ]
    lead = "The bundle's pictures against those of the full-precision model, from the same noise, on samples that training never saw."
    footer = (f"Differences are absolute and {DIFFERENCE_GAIN} times amplified. Pictures are 64x64 pixels, three times enlarged.",)
    tables = (pairs_table(tasks, answer.precision), effect_table(tasks), truth_loss_table(tasks))
    chapters = [chapter(run) for run in answer.runs]
    plots = [Plots("How much of each adapter comes through", EFFECT_LEAD, (gain_chart(tasks),))] if gains else []
    return Report("quad eval: the bundle against FP32", lead, facts, tables, chapters, (quality_table(tasks),), footer, plots)


def write_answer(answer: Answer, out: Path) -> None:
    """`eval.json`, `report.html` and `pictures/` below `out`."""
    for run in answer.runs:
        save_pictures(run, out / "pictures" / run.task)
    write_json(out / "eval.json", dict(answer.evaluation))
    write_bytes(out / "report.html", render(make_page(answer)).encode())
