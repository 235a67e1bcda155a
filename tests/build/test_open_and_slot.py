"""What a build holds in memory once everything is read: each weight once, in the network that is built."""

from __future__ import annotations

import gc
import re
import weakref
from pathlib import Path

import pytest

from quad.build import open_and_slot as opening
from quad.build.build import STAGES
from quad.build.request import BuildRequest
from quad.core.errors import InputError
from quad.core.progress import StageClock, silent
from quad.model.base.open import Base, open_model
from tests.build.samples import SAMPLES


def test_weights_that_equalization_folds_away_are_held_by_nobody(
    model_dir: Path, adapter_files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[weakref.ref[object]] = []

    def opened_model(*given: object) -> Base:
        base = open_model(*given)  # type: ignore[arg-type]
        read.extend(weakref.ref(weight) for weight in base.unet.parameters())
        return base

    monkeypatch.setattr(opening, "open_model", opened_model)
    request = BuildRequest(model_dir, adapter_files, tmp_path / "phone", samples=SAMPLES, precision="mixed:80")
    model = opening.open_and_slot(request, StageClock(STAGES, silent))
    gc.collect()
    folded = {id(weight) for weight in model.networks["unet"].parameters()}
    held = {id(weight()) for weight in read if weight() is not None}
    assert model.mixed_precision.gains
    assert held <= folded
    assert len(held) < len(read)


@pytest.mark.parametrize("fault", ["mistyped", "pickled", "a checkpoint", "a directory of none"])
def test_adapters_are_looked_at_before_the_model(
    fault: str, model_dir: Path, adapter_files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "open_model", lambda *_: pytest.fail("the model was opened"))
    (tmp_path / "ink.bin").write_bytes(b"\x80\x02")
    path, says = {
        "mistyped": (tmp_path / "nowhere.safetensors", "expected a LoRA file, found no such file; check the path"),
        "pickled": (tmp_path / "ink.bin", "convert it to safetensors"),
        "a checkpoint": (model_dir / "unet/diffusion_pytorch_model.safetensors", "this is a checkpoint, not a LoRA: give it as MODEL"),
        "a directory of none": (model_dir / "scheduler", "expected pytorch_lora_weights.safetensors or adapter_model.safetensors"),
    }[fault]
    request = BuildRequest(model_dir, {**adapter_files, "ink": path}, tmp_path / "phone", samples=SAMPLES, precision="w8a16")
    with pytest.raises(InputError, match=re.escape(says)):
        opening.open_and_slot(request, StageClock(STAGES, silent))
