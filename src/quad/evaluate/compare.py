"""`quad eval`: a bundle as its engine runs it against the full-precision model it was built from. The paper's table 1 on our tasks.

open both -> refuse what does not belong together -> pictures of both sides -> adapter effect -> figures
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from quad.build.fixed_threads import fixed_threads
from quad.core.device import CPU
from quad.core.errors import CompatibilityError, InputError, UsageError, mismatch
from quad.core.progress import Progress
from quad.core.storage.files import write_bytes
from quad.core.storage.pack import parse_adapter_manifest
from quad.evaluate.figures.effect import Effect, bundle_effects
from quad.evaluate.figures.evaluation import Evaluation
from quad.evaluate.figures.quality import check_world, find_adapters
from quad.evaluate.figures.reference import Reference
from quad.evaluate.figures.runs import BundleSide, Shortcuts, TaskRun, evaluate_all, run_tasks
from quad.evaluate.page.output import save_pictures, write_json
from quad.evaluate.page.report import DIFFERENCE_GAIN, Plots, Report, render
from quad.evaluate.page.tables import chapter, effect_gains, effect_table, gain_chart, pairs_table, quality_table, truth_loss_table
from quad.lora.file import find_lora, open_lora
from quad.quantize.processes.dealt import json_codec, shared
from quad.runtime.bundle import Bundle
from quad.runtime.fixed_threads import ENGINE_THREADS
from quad.runtime.pipeline import QuadPipeline

ZERO_PICTURES = 8  # samples a task whose pictures are made again with the zero adapter
EFFECT_LEAD = "At the U-Net's output, over single calls along full-precision runs. Below 1 the adapter is weaker than it was trained to be."
SHARES = {"run": 0.7, "effect": 0.2, "score": 0.1}


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """A bundle, and the model and LoRAs that it is compared with.

    Args:
        model: the diffusers directory of the full-precision model.
        vae: the autoencoder's file or directory that the bundle was built with in place of the model's own.
        adapters: name -> LoRA file; of those that are not named here, the model directory's own.
        n: held-out samples a task.
        engine: `auto`, or a name.
        float_type: of the U-Net's floats, see `QuadPipeline`.
        shortcuts: words of a call by which the bundle leaves work out, such as `guidance_interval`.
        device: that the full-precision model computes on, one of `quad.core.device.DEVICES`.
    """

    bundle: Path
    model: Path
    adapters: Mapping[str, Path]
    vae: Path | None = None
    n: int = 64
    engine: str = "auto"
    float_type: str = "auto"
    shortcuts: Shortcuts = field(default_factory=dict)
    device: str = CPU

    def check(self) -> None:
        """Refuse before anything is loaded.

        Raises:
            UsageError: `n` is below 1. InputError, UnsupportedError: as `check_world`.
        """
        if self.n < 1:
            raise UsageError(mismatch("--n", "1 or more", self.n, "choose a larger one"))
        check_world(self.model)


@dataclass(frozen=True)
class EvaluationResult:
    """The figures of `quad eval --json`, with the pictures they were taken from."""

    evaluation: Evaluation
    runs: Sequence[TaskRun]
    precision: str


def check_parents(bundle: Bundle, model: Path, model_digest: str, adapters: Mapping[str, Path]) -> None:
    """A bundle is compared with its own model and its own LoRAs only: digests, never names.

    Args:
        model_digest: of the files in `model`.

    Raises:
        CompatibilityError: the model or an adapter is another one.
    """
    expected = bundle.manifest.parents.get("base", "none")
    if model_digest != expected:
        raise CompatibilityError(
            mismatch(f"model {model}", f"digest {expected[:8]}, of which the bundle was built", model_digest[:8], "give that one")
        )
    for name, file in adapters.items():
        text, _ = bundle.adapter_files(name)
        expected = parse_adapter_manifest(str(text), text.read_bytes()).parents.get("source", "none")
        source = open_lora(file).digest
        if source != expected:
            raise CompatibilityError(
                mismatch(f"adapter {name!r}, {file}", f"digest {expected[:8]}, as in the bundle", source[:8], "give that file")
            )


def _check_size(bundle: Bundle, reference: Reference) -> None:
    """Raises:
    CompatibilityError: the bundle makes pictures of another size than the model, whose held-out samples are of its own.
    """
    if (size := bundle.manifest.picture_size) != reference.picture_size:
        expected = f"pictures of {reference.picture_size}, as the held-out samples are"
        raise CompatibilityError(mismatch(f"bundle {bundle.name!r}", expected, size, "compare a bundle built without --size"))


def _check_slots(bundle: Bundle) -> None:
    """Raises:
    CompatibilityError: adapters are in its weights, for which the full-precision side has no counterpart.
    """
    if merged := [adapter.name for adapter in bundle.manifest.merged or ()]:
        found = f"{', '.join(merged)} in its weights"
        hint = "compare the bundle that it was baked from; quad bake tells how near the two are"
        raise CompatibilityError(mismatch(f"bundle {bundle.name!r}", "adapters that are bound", found, hint))


def adapter_files(bundle: Bundle, model: Path, adapters: Mapping[str, Path]) -> dict[str, Path]:
    """The LoRA file of every adapter that the bundle ships: one that is named, or the model directory's own.

    Raises:
        InputError: there is none.
    """
    files = {**find_adapters(model), **adapters}
    if missing := [name for name in bundle.manifest.adapters if name not in files]:
        raise InputError(
            mismatch(f"adapter {missing[0]!r} of the bundle", "its LoRA file", "none", f"name it: --adapter {missing[0]}=FILE")
        )
    return {name: find_lora(files[name]) for name in bundle.manifest.adapters}


def evaluate_bundle(request: EvaluationRequest, progress: Progress) -> EvaluationResult:
    """Both sides of every task that the bundle has, and everything measured on them.

    Args:
        progress: called with the step that begins and the share of the whole done.

    Raises:
        UsageError, UnsupportedError: as `EvaluationRequest.check`.
        InputError: no bundle, no model, or no file of an adapter.
        RefusedError: the bundle was changed, or the model or an adapter is not the one it was built from.
        BackendError: no engine can run the bundle.
    """
    request.check()
    with fixed_threads():  # the full-precision side's figures are the same on any number of cores and processes
        return _evaluate_bundle(request, progress)


def _evaluate_bundle(request: EvaluationRequest, progress: Progress) -> EvaluationResult:
    progress("open", 0.0)
    pipe = QuadPipeline.from_pretrained(request.bundle, engine=request.engine, threads=ENGINE_THREADS, float_type=request.float_type)
    _check_slots(pipe.bundle)
    adapters = adapter_files(pipe.bundle, request.model, request.adapters)
    reference = Reference(request.model, adapters, pipe.bundle.manifest.text.skipped_layers + 1, vae=request.vae).on(request.device)
    model_digest = reference.digest_as(pipe.bundle.manifest.parents.get("base", "none"))
    check_parents(pipe.bundle, request.model, model_digest, adapters)
    _check_size(pipe.bundle, reference)
    side = BundleSide(ZERO_PICTURES, request.shortcuts)
    runs = run_tasks(reference, pipe, request.n, lambda step, share: progress(f"run {step}", share * SHARES["run"]), side)
    progress("adapter effect", SHARES["run"])
    effects = shared(lambda: bundle_effects(pipe, reference, request.model, adapters, request.n), json_codec(dict[str, Effect | None]))
    before = SHARES["run"] + SHARES["effect"]
    evaluation = evaluate_all(
        runs, reference, pipe.engine, effects, lambda step, share: progress(f"score {step}", before + share * SHARES["score"])
    )
    progress("done", 1.0)
    return EvaluationResult(evaluation, runs, pipe.bundle.manifest.precision)


def make_page(result: EvaluationResult) -> Report:
    """The page's content."""
    tasks = result.evaluation.tasks
    gains = effect_gains(tasks)
    facts = [
        ("worst task against FP32", f"{min((entry.psnr for entry in tasks.values()), default=0.0):.1f} dB"),
        ("lowest SSIM", f"{min((entry.ssim for entry in tasks.values()), default=0.0):.3f}"),
        ("adapter effect gain", f"{min(gains.values()):.3f} to {max(gains.values()):.3f}" if gains else "none"),
        ("precision", result.precision),
        ("engine", result.evaluation.engine),
    ]
    lead = "The bundle's pictures against those of the full-precision model, from the same noise, on samples that training never saw."
    footer = (f"Differences are absolute and {DIFFERENCE_GAIN} times amplified. Pictures are three times enlarged.",)
    tables = (pairs_table(tasks, result.precision), effect_table(tasks), truth_loss_table(tasks))
    chapters = [chapter(run) for run in result.runs]
    plots = [Plots("How much of each adapter comes through", EFFECT_LEAD, (gain_chart(gains),))] if gains else []
    return Report(
        title="quad eval: the bundle against FP32",
        lead=lead,
        facts=facts,
        tables=tables,
        chapters=chapters,
        closing=(quality_table(tasks),),
        footer=footer,
        plots=plots,
    )


def write_result(result: EvaluationResult, out: Path) -> None:
    """`eval.json`, `report.html` and `pictures/` below `out`."""
    for run in result.runs:
        save_pictures(run, out / "pictures" / run.task)
    write_json(out / "eval.json", msgspec.to_builtins(result.evaluation))
    write_bytes(out / "report.html", render(make_page(result)).encode())
