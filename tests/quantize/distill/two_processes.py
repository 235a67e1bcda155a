"""One process of a distillation, as often as the launcher starts it: `python -m tests.quantize.distill.two_processes DIRECTORY`.

Every process leaves `RANK.json` (what happened) and `RANK.safetensors` (its integers); the first alone may write a checkpoint.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.numpy import save_file

from quad.build.fixed_threads import fixed_threads
from quad.core.errors import QuadError
from quad.lora.fit.slot_inputs import slot_inputs
from quad.quantize.distill import checkpoint
from quad.quantize.distill.distill import TeacherStudent
from quad.quantize.distill.options import DistillOptions
from quad.quantize.distill.teacher_calls import TeacherCall, call_teacher
from tests.quantize.conftest import Tiny, make_tiny
from tests.quantize.distill.teacher_student import Watched, make_pair, make_probes

# Five calls are not dealt evenly to two.
OPTIONS = DistillOptions(steps=12, rate=0.001, batch=5, every=4, lambda_=0.5)
ONE_STEP = replace(OPTIONS, steps=1)
WILD = DistillOptions(steps=12, rate=10.0, every=1, patience=2)


@cache
def start() -> tuple[TeacherStudent, Tiny, tuple[TeacherCall, ...]]:
    """A student whose slots alone are quantized and a teacher of slightly other weights."""
    tiny = make_tiny()
    pair = make_pair(tiny, bits=16)
    slots = {name: one for name, one in pair.profile.component("unet").items() if name.endswith((".lora_A", ".lora_B"))}
    teacher = copy.deepcopy(tiny.network)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.05 * parameter.abs().mean() * torch.randn_like(parameter))
    pair = replace(pair, teacher=teacher, profile=msgspec.structs.replace(pair.profile, encodings={"unet": slots}))
    calls = call_teacher(teacher, slot_inputs(tiny.adapters[1], tiny.table), make_probes("loud", seed=1))
    return pair, tiny, tuple(calls)


@fixed_threads()
def distilled(options: DistillOptions) -> Watched:
    pair, tiny, examples = start()
    return Watched(pair, tiny.adapters[1], options, examples)


def refused(options: DistillOptions) -> str:
    try:
        distilled(options)
    except QuadError as error:
        return str(error)
    return "nothing"


def refuse(path: Path, data: bytes) -> None:
    raise AssertionError(f"this process may not write {path}")


def main(directory: Path) -> None:
    rank = int(os.environ["RANK"])
    if rank:
        checkpoint.write_bytes = refuse
    kept, nowhere = directory / "kept.safetensors", directory / "nowhere.safetensors"
    first, again, wild = (distilled(options) for options in (*[replace(OPTIONS, checkpoint=kept)] * 2, WILD))
    distilled(replace(ONE_STEP, checkpoint=directory / "step.safetensors"))
    facts: dict[str, Any] = {"told": first.told, "told_again": again.told, "same_again": again.same_integers(first)}
    facts |= {"steps": first.result.alignment.steps, "wild_steps": wild.result.alignment.steps}
    facts["alignment"] = first.result.alignment.to_json()
    facts["apart"] = refused(replace(OPTIONS, checkpoint=nowhere if rank else kept))
    facts["few"] = distilled(replace(ONE_STEP, batch=1)).result.alignment.to_json()
    save_file(first.result.integers, directory / f"{rank}.safetensors")
    (directory / f"{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
