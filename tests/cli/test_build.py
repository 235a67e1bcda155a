"""`quad build` end to end on a tiny random model, and what is refused."""

from __future__ import annotations

import json
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quad.admit.request import AdaptRequest
from quad.build.request import COMPACT_FROM, BuildRequest
from quad.cli.adapt import adapt
from quad.cli.build import BuildOptions
from quad.cli.main import app
from quad.core.errors import QuadError
from quad.model.base.open import BaseOptions
from quad.zoo import reference
from tests.small_model import adapter_files as adapter_files
from tests.small_model import base as base
from tests.small_model import model_dir as model_dir

RUNNER = CliRunner()


def _adapters(files: dict[str, Path]) -> list[str]:
    return [word for name, path in files.items() for word in ("--adapter", f"{name}={path}")]


@pytest.fixture(scope="module")
def built(model_dir: Path, adapter_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What `--json` printed and what stderr said."""
    out = tmp_path_factory.mktemp("built") / "phone"
    done = RUNNER.invoke(app, ["build", str(model_dir), "-o", str(out), "--json", *_adapters(adapter_files)])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout), done.stderr


def test_json_holds_the_fields_that_checks_read(built: tuple[dict[str, Any], str]) -> None:
    facts, _ = built
    assert {"bundle", "seconds", "peak_ram_bytes", "profile", "alignment", "placement"} <= facts.keys()
    assert Path(facts["bundle"], "bundle.json").is_file()


def test_stages_are_told_on_stderr(built: tuple[dict[str, Any], str]) -> None:
    shown = [line.split("% ")[1] for line in built[1].splitlines() if "% " in line]
    assert shown[0] == "open"
    assert shown[-1] == "done"


def test_the_ranking_and_the_reason_are_told_on_stderr(built: tuple[dict[str, Any], str]) -> None:
    facts, said = built[0]["profile"], built[1].splitlines()
    ranked = [line.split(": ")[0] for line in said if line.startswith("sensitivity ")]
    assert ranked == [f"sensitivity {place}. {name}" for place, name in enumerate(facts["ranking"], 1)]
    assert f"profile {facts['mode']}: {facts['reason']}" in said


def test_what_was_built_can_be_inspected_and_run(built: tuple[dict[str, Any], str], tmp_path: Path) -> None:
    bundle = built[0]["bundle"]
    facts = json.loads(RUNNER.invoke(app, ["inspect", bundle, "--json"]).stdout)
    assert {name: adapter["rank"] for name, adapter in facts["adapters"].items()} == {"transform": 4, "removal": 2}
    done = RUNNER.invoke(app, ["run", bundle, "--task", "text-to-image", "--prompt", "a house", "-o", str(tmp_path / "a.png")])
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "a.png").is_file()


class _Asked(QuadError):
    """Stops a build at its beginning."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[BuildRequest]:
    """The builds that were asked for; none is done."""
    requests: list[BuildRequest] = []

    def stop(request: BuildRequest, _progress: object) -> None:
        requests.append(request)
        raise _Asked("asked")

    monkeypatch.setattr("quad.build.build.build", stop)
    return requests


@pytest.mark.parametrize("model", reference.MODELS)
def test_toyland_brings_its_adapters_and_samples(
    model: str, model_dir: Path, asked: list[BuildRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "reference_dir", {model: model_dir}.__getitem__)
    monkeypatch.setattr(reference, "reference_adapters", {model: {"removal": model_dir / "r", "transform": model_dir / "t"}}.__getitem__)
    RUNNER.invoke(app, ["build", model, "-o", "phone"])
    RUNNER.invoke(app, ["build", model, "-o", "phone", "--adapter", "ink=ink.safetensors"])
    five, one = asked
    assert (five.model, list(five.adapters)) == (model_dir, ["removal", "transform"])
    assert {sample.task for sample in five.samples} == {"text-to-image", "transform", "removal"}
    assert {sample.adapter for sample in five.samples} == {None}
    assert dict(one.adapters) == {"ink": Path("ink.safetensors")}
    assert {sample.task for sample in one.samples if sample.adapter == "ink"} == {"text-to-image"}


def test_shipped_adapters_are_named_without_a_path(tmp_path: Path, asked: list[BuildRequest]) -> None:
    RUNNER.invoke(app, ["build", str(tmp_path), "-o", "phone", "--adapter", "toyland", "--adapter", "fast=toyland:speed,guidance=2"])
    RUNNER.invoke(app, ["build", str(tmp_path), "-o", "phone", "--adapter", "toyland:speed,rank=4"])
    six, one = asked
    speed = reference.later_adapters()["speed"]
    assert dict(six.adapters) == {**reference.reference_adapters(), "fast": speed}
    assert six.adapter_defaults["fast"].guidance == 2.0
    assert (dict(one.adapters), one.adapter_ranks) == ({"speed": speed}, {"speed": 4})
    unknown = RUNNER.invoke(app, ["build", str(tmp_path), "-o", "phone", "--adapter", "toyland:spede"])
    assert unknown.exit_code == 2
    assert "toyland:NAME with one of portrait, removal" in unknown.stderr


def test_a_recipe_gives_options_and_the_command_line_goes_first(tmp_path: Path, asked: list[BuildRequest]) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('precision = "float"\nmax-rank = 5\nmin-energy = 0.5\nadapter = ["ink=a.safetensors"]\n')
    RUNNER.invoke(app, ["build", str(tmp_path), "-o", "phone", "--recipe", str(recipe), "--max-rank", "6"])
    (request,) = asked
    assert (request.precision, request.max_rank, request.lora_bits, request.min_energy) == ("float", 6, 16, 0.5)
    assert dict(request.adapters) == {"ink": Path("a.safetensors")}


def test_size_and_sampler_go_to_the_build(tmp_path: Path, asked: list[BuildRequest]) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('size = 128\nsampler = "euler"\n')
    RUNNER.invoke(app, ["build", str(tmp_path), "-o", "phone", "--recipe", str(recipe), "--sampler", "ddim:9"])
    (request,) = asked
    assert (request.size, request.sampler) == (128, "ddim:9")
    assert request.base_options == BaseOptions(128, "ddim:9", (), compact_from=COMPACT_FROM)
    RUNNER.invoke(app, ["build", str(tmp_path), "-o", "phone", "--recipe", str(recipe), "--size", "64x128"])
    assert asked[-1].base_options.asked_sizes() == ((64, 128),)


def test_an_adapter_may_have_a_rank_of_its_own(tmp_path: Path, asked: list[BuildRequest]) -> None:
    words = ["--adapter", "ink=a.safetensors,rank=640,guidance=1", "--adapter", "pen=b.safetensors", "--max-rank", "8"]
    RUNNER.invoke(app, ["build", str(tmp_path), "-o", "phone", *words])
    (request,) = asked
    assert dict(request.adapters) == {"ink": Path("a.safetensors"), "pen": Path("b.safetensors")}
    assert [request.rank_limits(name).max_rank for name in ("ink", "pen")] == [640, 8]
    assert request.adapter_defaults["ink"].guidance == 1.0


def test_room_for_several_adapters_goes_to_the_build(tmp_path: Path, asked: list[BuildRequest]) -> None:
    for option in ([], ["--room", "3"]):
        RUNNER.invoke(app, ["build", str(tmp_path), "-o", "phone", *option])
    assert [(request.room, request.slot_room) for request in asked] == [(None, 2), (3, 3)]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--size", "100"], 2, "--size: expected multiples of 64 pixels up to 8192, found '100'"),
        (["--sampler", "abacus"], 2, "found 'abacus'"),
        (["--target", "abacus"], 2, "--target: expected"),
        (["--precision", "w2a2"], 2, "--precision: expected"),
        (["--precision", "mixed:101"], 2, "--precision: expected mixed:P with P from 0 to 100, found 'mixed:101'"),
        (["--anchor", "ink"], 2, "--anchor: expected auto, unified, found 'ink'; choose one of these"),
        (["--adapter", "auto=a.safetensors"], 2, "--adapter: expected a name other than auto, found 'auto'"),
        (["--room", "2", "--max-rank", "8"], 2, "--room: expected no --max-rank, which gives every slot its rank, found 8"),
        (["--lora-bits", "7"], 2, "--lora-bits: expected 16 or 8, found 7"),
        (["--distill-steps", "-1"], 2, "--distill-steps: expected 0 or more, found -1"),
        (["--lambda", "-1"], 2, "--lambda: expected a number from 0, found -1.0"),
        (["--lambda", "nan"], 2, "--lambda: expected a number from 0, found nan"),
        (["--lambda", "1", "--distill-steps", "0"], 2, "--lambda: expected steps of training, found --distill-steps 0"),
        (["--adapter", "ink=nowhere.safetensors"], 1, "nowhere.safetensors"),
        (["--adapter", "ink=nowhere.safetensors,rank=5000"], 2, "--adapter ink, rank: expected 1 to 4096, found 5000"),
        (["--recipe", "nowhere.toml"], 1, "nowhere.toml: expected a recipe file"),
    ],
)
def test_a_build_that_cannot_be_done_is_one_line_and_writes_nothing(
    model_dir: Path, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    done = RUNNER.invoke(app, ["build", str(model_dir), "-o", str(tmp_path / "phone"), "--json", *arguments])
    assert (done.exit_code, done.stdout) == (code, "")
    assert says in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = RUNNER.invoke(app, ["build", str(tmp_path / "nowhere"), "-o", str(tmp_path / "phone")])
    assert done.exit_code == 1
    assert "expected a diffusers directory, a checkpoint" in done.stderr.splitlines()[-1]


def test_each_option_is_a_field_of_the_request_that_python_gives() -> None:
    """`quad.build(BuildRequest(...))` and `quad.adapt(AdaptRequest(...))` can say all that the command line can."""
    built, adapted = ({field.name for field in fields(request)} for request in (BuildRequest, AdaptRequest))
    assert set(BuildOptions.__struct_fields__) - built == {"adapter"}  # adapters, and adapter_defaults
    assert set(signature(adapt).parameters) - adapted == {"prompt", "as_json"}  # prompts; what is printed
