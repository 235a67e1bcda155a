"""LoRA files that `quad build` would refuse are refused by `quad adapt`, which knows the model by its slots alone; nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from quad.build.build import BuildRequest, build
from quad.quantize.observe.calibrate import CalibrationSample
from tests.hostile.lora_bytes import CUT, ENTRIES, FORMATS, HEADERS, LENGTHS, PAIR
from tests.hostile.lora_meaning import ATTN2, BASES, CONV, KEYS, KINDS, NUMBERS, PARTS, TEXT
from tests.hostile.lora_places import CONFIGS, METADATA, PLACES
from tests.hostile.raw import ones
from tests.hostile.refusal import Case, each, quad_refuses


@pytest.fixture(scope="session")
def frozen(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with slots where the hostile files aim."""
    place = tmp_path_factory.mktemp("frozen")
    lora = {
        **PAIR,
        f"unet.{ATTN2}.lora_A.weight": ones(4, 16),
        f"unet.{ATTN2}.lora_B.weight": ones(32, 4),
        f"unet.{CONV}.lora_A.weight": ones(4, 16, 3, 3),
        f"unet.{CONV}.lora_B.weight": ones(16, 4, 1, 1),
        f"{TEXT}.lora_A.weight": ones(4, 16),
        f"{TEXT}.lora_B.weight": ones(16, 4),
    }
    save_file({name: tensor * 0.01 for name, tensor in lora.items()}, place / "own.safetensors")
    samples = [CalibrationSample(task="text-to-image", prompt="a", adapter="own")]
    build(BuildRequest(model_dir, {"own": place / "own.safetensors"}, place / "phone", samples=samples, precision="w8a16", distill_steps=0))
    return place / "phone"


@each([*CUT, *LENGTHS, *HEADERS, *ENTRIES, *FORMATS, *NUMBERS, *KEYS, *BASES, *PARTS, *KINDS, *PLACES, *CONFIGS, *METADATA])
def test_what_no_build_takes_no_bundle_admits(case: Case, frozen: Path, place: Path, out: Path) -> None:
    path = case.write(place)
    quad_refuses(["adapt", frozen, f"ink={path}", "-o", out / "ink.qpack"], case.error, case.says, out)
