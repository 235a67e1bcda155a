"""A build on another device: every stage moves what it must, gives what the CPU gives there, and its files are the CPU's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from quad.build import build as building
from quad.build.build import build
from quad.build.make_bundle import make_bundle
from quad.build.request import BuildRequest
from quad.core.digests import file_digest
from quad.core.errors import UsageError
from quad.model import device as devices
from quad.quantize.observe.batched_calls import TensorInputs, batched
from tests.build.samples import SAMPLES
from tests.elsewhere import NAME, elsewhere

Result = TypeVar("Result")


def test_a_build_leaves_no_tensor_behind(
    model_dir: Path, adapter_files: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers are the CPU's, so the bundle is too, byte for byte."""

    def digests(device: str) -> dict[str, str]:
        out = tmp_path / device
        options = BuildRequest(
            model_dir, adapter_files, out, samples=SAMPLES, name="one", precision="mixed:50", distill_steps=1, device=device
        )
        build(options)
        return {file.relative_to(out).as_posix(): file_digest(file) for file in out.rglob("*") if file.is_file()}

    expected = digests("cpu")
    monkeypatch.setattr(devices, "accelerators", lambda: (NAME,))
    monkeypatch.setattr(building, "make_bundle", lambda *arguments: _by_torch_alone(make_bundle, *arguments))
    with elsewhere() as crossings:
        assert digests(NAME) == expected
    assert crossings["in"] > 100
    assert crossings["out"] > 100


def _by_torch_alone(make: Callable[..., Result], *arguments: object) -> Result:
    """What is exported lies on the CPU again, and the exporter has a use of its own for the name of that device."""
    with _disable_current_modes():
        return make(*arguments)


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--device: expected one of auto, cpu, cuda, mps"):
        build(BuildRequest(tmp_path / "none", {}, tmp_path / "out", device="tpu"))


def test_a_batch_that_does_not_fit_is_halved() -> None:
    sizes: list[int] = []

    def compute(sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        sizes.append(len(sample))
        if len(sample) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return sample + timestep[:, None]

    calls: list[TensorInputs] = [(torch.full((1, 3), float(k)), torch.full((1,), 0.5), torch.zeros(1, 1, 1)) for k in range(5)]
    outputs = batched(compute, calls, torch.device("meta"))  # any device but the CPU
    assert [output[0, 0].item() for output in outputs] == [0.5, 1.5, 2.5, 3.5, 4.5]
    assert max(sizes[-3:]) <= 2


def test_a_network_without_weights_is_on_the_cpu() -> None:
    assert devices.device_of(nn.Identity()) == devices.HERE
    assert devices.device_of(nn.Linear(1, 1, device="meta")) == torch.device("meta")
