"""A killed run goes on from its checkpoint to the very same end; a file that is not whole and its own is passed over."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from quad.core.errors import BackendError
from quad.quantize.distill.checkpoint import Checkpoint, TrainingState
from quad.quantize.distill.distill import Distilled, TeacherStudent, distill
from quad.quantize.distill.options import DistillOptions
from tests.quantize.conftest import Tiny
from tests.quantize.distill.teacher_student import Watched, make_pair, make_probes

LONG = DistillOptions(steps=6, rate=0.01, every=2)


class Killed(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def pair(tiny: Any) -> TeacherStudent:
    return make_pair(tiny)


@pytest.fixture(scope="module")
def whole(pair: TeacherStudent, tiny: Tiny) -> Watched:
    """The run that nobody disturbs."""
    return Watched(pair, tiny.adapters[1], LONG)


@pytest.fixture(scope="module")
def killed_once(pair: TeacherStudent, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("killed") / "made" / "loud.safetensors"

    def kill(step: int, loss: float) -> None:
        if step == 4:
            raise Killed

    with pytest.raises(Killed):
        distill(pair, tiny.adapters[1], make_probes("loud"), replace(LONG, checkpoint=file), progress=kill)
    return file.parent


@pytest.fixture
def killed(killed_once: Path, tmp_path: Path) -> Path:
    """The checkpoint of a run that was killed after its second check, to go on from or to damage."""
    return shutil.copytree(killed_once, tmp_path / "made") / "loud.safetensors"


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return dict(opened.metadata())


def assert_same(found: Distilled, expected: Distilled) -> None:
    assert found.alignment == expected.alignment
    for name, values in expected.integers.items():
        assert found.integers[name].tobytes() == values.tobytes()


def test_a_killed_run_ends_as_if_nothing_had_been(
    pair: TeacherStudent, tiny: Tiny, killed: Path, whole: Watched, tmp_path: Path
) -> None:  # fmt: skip
    """Integers may hide a difference, so the two checkpoints are compared too: weights, best weights, moments and all."""
    again = Watched(pair, tiny.adapters[1], replace(LONG, checkpoint=killed))
    assert again.told == whole.told[2:]  # it did not begin anew
    assert_same(again.result, whole.result)
    assert [file.name for file in killed.parent.iterdir()] == [killed.name]
    file = tmp_path / "whole.safetensors"
    Watched(pair, tiny.adapters[1], replace(LONG, checkpoint=file))
    assert metadata(killed) == metadata(file)
    expected, found = load_file(file), load_file(killed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], values) for name, values in expected.items())


def test_a_finished_run_is_not_done_again_wherever_its_file_lies(pair: TeacherStudent, tiny: Tiny, tmp_path: Path, whole: Watched) -> None:
    file, moved = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    Watched(pair, tiny.adapters[1], replace(LONG, checkpoint=file))
    file.rename(moved)
    again = Watched(pair, tiny.adapters[1], replace(LONG, checkpoint=moved))
    assert again.told == []
    assert_same(again.result, whole.result)


def test_the_file_of_another_run_is_passed_over(pair: TeacherStudent, tiny: Tiny, killed: Path) -> None:
    for adapter, options in ((tiny.adapters[1], replace(LONG, seed=1)), (tiny.adapters[0], LONG)):
        expected = Watched(pair, adapter, options)
        found = Watched(pair, adapter, replace(options, checkpoint=killed))
        assert found.told == expected.told
        assert_same(found.result, expected.result)


def test_other_calls_of_the_same_number_are_another_run(pair: TeacherStudent, tiny: Tiny, killed: Path) -> None:
    probes = make_probes("loud", seed=1)
    told: list[int] = []
    distill(pair, tiny.adapters[1], probes, replace(LONG, checkpoint=killed), progress=lambda step, _: told.append(step))
    assert told == [2, 4, 6]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def bend(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-10] ^= 0xFF
    file.write_bytes(bytes(data))


def lose_a_tensor(file: Path) -> None:
    told, tensors = metadata(file), load_file(file)
    tensors.pop("best.0")
    save_file(tensors, file, told)


def lie_about_the_step(file: Path) -> None:
    save_file(load_file(file), file, {**metadata(file), "step": "6"})


@pytest.mark.parametrize("damage", [cut, bend, lose_a_tensor, lie_about_the_step])
def test_a_damaged_file_is_passed_over(
    damage: Callable[[Path], None], pair: TeacherStudent, tiny: Tiny, killed: Path, whole: Watched
) -> None:  # fmt: skip
    damage(killed)
    again = Watched(pair, tiny.adapters[1], replace(LONG, checkpoint=killed))
    assert again.told == whole.told
    assert_same(again.result, whole.result)


@pytest.mark.parametrize("content", [b"", b"no file of ours", b"cos\nsystem\n(S'exit 7'\ntR.", b"\x80\x04N.", b"\xff" * 8])
def test_what_is_no_safetensors_is_neither_read_nor_unpickled(content: bytes, pair: TeacherStudent, tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "loud.safetensors"
    file.write_bytes(content)
    assert Watched(pair, tiny.adapters[1], DistillOptions(steps=1, checkpoint=file)).result.alignment.steps == 1
    assert metadata(file)["step"] == "1"


def test_a_place_that_cannot_be_written_to_is_one_line(pair: TeacherStudent, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendError, match=r"^[^\n]+cannot write[^\n]+$"):
        Watched(pair, tiny.adapters[1], DistillOptions(steps=1, checkpoint=tmp_path / "file" / "loud.safetensors"))


def test_all_that_is_saved_comes_back(tmp_path: Path) -> None:
    def make(seed: int) -> tuple[list[torch.nn.Parameter], list[torch.Tensor], torch.optim.Optimizer]:
        weight, best = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed)).split(1)
        parameter = torch.nn.Parameter(weight)
        optimizer = torch.optim.Adam([parameter])
        parameter.square().sum().backward()
        optimizer.step()
        return [parameter], [best.clone()], optimizer

    checkpoint, standing = Checkpoint(tmp_path / "a.safetensors", "this run"), TrainingState(7, 0.1, 2)
    (weight,), (best,), optimizer = saved = make(0)
    checkpoint.save(standing, *saved)
    (other,), (other_best,), other_optimizer = loaded = make(1)
    assert checkpoint.load(*loaded) == standing
    assert torch.equal(other, weight)
    assert torch.equal(other_best, best)
    for name, values in optimizer.state[weight].items():
        assert torch.equal(other_optimizer.state[other][name], values)
