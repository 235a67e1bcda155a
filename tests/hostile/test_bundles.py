"""Bundles that cannot be trusted: `quad inspect` or `quad run` refuses each with one line, and no picture is written."""

from __future__ import annotations

from pathlib import Path

from quad.core.errors import QuadError
from quad.runtime import QuadPipeline, open_bundle
from tests.hostile.bundles import DAMAGED, MANIFESTS
from tests.hostile.bundles_sealed import FORGED, GRAPHS, SLOTS, TASKS
from tests.hostile.refusal import Case, each, quad_refuses, quad_survives, refused


def _run_refuses(case: Case, bundle: Path, out: Path, error: type[QuadError]) -> None:
    quad_refuses(["run", bundle, "--task", "text-to-image", "-o", out / "a.png"], error, case.says, out)


@each([*DAMAGED, *MANIFESTS])
def test_damaged_bundles(case: Case, bundle_copy: Path, out: Path) -> None:
    bundle = case.write(bundle_copy)
    refused(case.error, case.says, lambda: open_bundle(bundle))
    quad_refuses(["inspect", bundle], case.error, case.says)
    _run_refuses(case, bundle, out, case.error)


@each([*FORGED, *SLOTS, *TASKS, *GRAPHS])
def test_bundles_that_were_sealed_all_the_same(case: Case, bundle_copy: Path, out: Path) -> None:
    bundle = case.write(bundle_copy)
    quad_survives(["inspect", bundle])
    _run_refuses(case, bundle, out, case.error)


def test_nothing_but_digests_stands_between(bundle_copy: Path) -> None:
    """Without them a damaged graph is the engine's to refuse, still in one line."""
    (bundle_copy / "unet/model.onnx").write_bytes(b"graph")
    refused(QuadError, "engine ort: cannot load", lambda: QuadPipeline.from_pretrained(bundle_copy, engine="ort", verify=False))
