"""Every place of CONTRIBUTING.md's "how to add" knows every sampler, kind of LoRA, engine, target and pass that there is."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import math
import re
import textwrap
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest

from quad.compile.backend import BACKENDS
from quad.compile.passes.registry import PASSES
from quad.compile.targets import Target, check_precision, load_target, target_names
from quad.core.families import FAMILIES, OTHERS, SIGNS, Family, table
from quad.core.manifest import NoiseSchedule
from quad.core.sampling import SamplerKind, SamplerSettings
from quad.lora import kinds, low_rank
from quad.lora import target as lora_target
from quad.lora.kinds import KINDS, NOT_READ, Kind
from quad.lora.module_names import SPELLINGS
from quad.model.base import noise_schedule
from quad.model.base.family import loaded_classes
from quad.model.base.sampler_names import SCHEDULERS
from quad.runtime.engines.engine import ENGINES, INSTALL
from quad.runtime.samplers import contract, run, schedule
from quad.runtime.samplers.names import SAMPLER_NAMES
from tests.runtime.samplers.test_beside import CASES, STOCHASTIC

ROOT = Path(__file__).parents[1]
SOLVED = "olss"  # from a table that a build solves: no class of diffusers, no name for users
CONFIGURED = "dpmsolver"  # told by a model's own config, not by a name for users
OURS = (SOLVED,)  # diffusers has none of these, so nothing stands beside them
KARRAS = "-karras"


def _text(*parts: str) -> str:
    return ROOT.joinpath(*parts).read_text("utf-8")


def _row(page: str, start: str) -> str:
    """The line of a page that begins so."""
    lines = [line for line in _text(page).splitlines() if line.startswith(start)]
    assert len(lines) == 1, f"{page} has {len(lines)} lines that begin with {start!r}"
    return lines[0]


def _tests(folder: str) -> str:
    """All tests of a room as one text."""
    return "\n".join(path.read_text("utf-8") for path in sorted(ROOT.joinpath("tests", folder).rglob("*.py")))


@pytest.mark.parametrize("kind", get_args(SamplerKind))
def test_a_sampler_is_known_in_every_place(kind: str) -> None:
    stochastic = {name for name, _, _ in STOCHASTIC}
    if kind != SOLVED:
        assert kind in run._MAKERS, "src/quad/runtime/samplers/run.py: its maker"
        ordered = kind in stochastic or f'"{kind}"' in _text("tests/runtime/samplers/test_orders.py")
        assert ordered, "tests/runtime/samplers/test_orders.py: its order"
    if kind not in OURS:
        beside = {name for name, _, _ in CASES} | stochastic
        assert kind in beside, "tests/runtime/samplers/test_beside.py: a case beside diffusers (or in OURS, where diffusers has none)"
    if kind not in (SOLVED, CONFIGURED):
        assert kind in SAMPLER_NAMES, "src/quad/runtime/samplers/names.py: its name"
        assert kind in SCHEDULERS, "src/quad/model/base/sampler_names.py: diffusers' class"
        assert SCHEDULERS[kind][0] in noise_schedule._CLASSES, "src/quad/model/base/noise_schedule.py: diffusers' class"
    assert f"`{kind}`" in _text("docs/cli.md"), "docs/cli.md: its name in the list of samplers"


def test_names_of_samplers_are_kinds_and_makers_are_no_more() -> None:
    assert list(SCHEDULERS) == list(SAMPLER_NAMES)
    kinds = set(get_args(SamplerKind))
    assert {name.removesuffix(KARRAS) for name in SAMPLER_NAMES} <= kinds
    assert set(run._MAKERS) == kinds - {SOLVED}
    assert {kind for kind, _ in noise_schedule._CLASSES.values()} <= kinds


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_of_lora_is_known_in_every_place(kind: Kind) -> None:
    assert kind.update.__module__.startswith("quad.lora.updates."), "src/quad/lora/updates: what it adds to a weight"
    assert f"\n| {kind.name} |" in _text("docs/formats.md"), "docs/formats.md: its row in the table of kinds"
    own = sorted(kind.roles - set().union(*(other.roles for other in KINDS if other is not kind)))
    for page in ("tests/lora/test_kinds.py", "tests/lora/test_kinds_refused.py"):
        assert not own or any(role in _text(page) for role in own), f"{page}: a module with {', '.join(own)}"
    ranked = {role for other in KINDS for role in (*(role for role, _ in other.rank_axes), other.written_out)}
    assert not kind.roles.isdisjoint(ranked), "src/quad/lora/kinds.py: rank_axes or written_out, or quad inspect shows rank 0"
    assert kind.name not in {name for _, name in NOT_READ}, "src/quad/lora/kinds.py: it is read, and in NOT_READ"


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_is_known_in_every_place(engine: str) -> None:
    assert engine in INSTALL, "src/quad/runtime/engines/engine.py: what installs it"
    contract = _text("tests/runtime/engines/test_engine.py")
    classes = re.findall(rf'^class \w+\(EngineContract\):(?:(?!^class ).)*?^    engine = "{engine}"$', contract, re.MULTILINE | re.DOTALL)
    assert classes, "tests/runtime/engines/test_engine.py: a subclass of EngineContract"
    assert [name for name in target_names() if engine in load_target(name).engines], "src/quad/compile/targets: a target that it runs"
    assert f"| `{engine}` " in _text("docs/targets.md"), "docs/targets.md: its target's row"
    assert f"`{engine}`" in _text("docs/cli.md"), "docs/cli.md: --engine"


@pytest.mark.parametrize("name", target_names())
def test_a_target_is_known_in_every_place(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert [engine for engine in target.engines if engine not in ENGINES] == []
    assert target.backend in BACKENDS, "src/quad/compile/backend.py: its backend"
    assert [step for step in target.passes if step not in PASSES] == []
    engines = _row("docs/targets.md", f"| `{name}` |")
    assert all(f"`{engine}`" in engines for engine in target.engines), "docs/targets.md: its engines"
    assert f"`{name}`" in _row("docs/cli.md", "| `--target` NAME |"), "docs/cli.md: --target"
    check_precision(target, target.default_precision)
    assert f"default `{target.default_precision}`" in engines, "docs/targets.md: its default precision"
    passes = _row("docs/passes.md", f"| `{name}` |")
    assert [step for step in target.passes if f"`{step}`" not in passes] == [], "docs/passes.md: the passes that it uses"
    assert f'"{name}"' in _tests("compile") + _tests("build"), "tests/compile or tests/build: a test"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_is_known_in_every_place(family: Family) -> None:
    for classes in (family.denoiser.classes, *(text.classes for text in family.texts)):
        assert loaded_classes(classes).keys() == classes.keys(), "src/quad/core/families: classes that are there"
    assert set(family.lora.spellings) <= SPELLINGS.keys(), "src/quad/lora/module_names.py: its transforms"
    assert family.name not in {signs.name for signs in OTHERS}, "src/quad/core/families/others.py: it opens, and is refused by name"
    assert re.search(re.escape(family.name.removesuffix(".x").split()[-1]), _text("docs/cli.md")), "docs/cli.md: the models that open"
    pipelines = {layout.pipeline for layout in family.denoiser.layouts if layout.pipeline} | set(family.repairs)
    assert pipelines <= set(family.pipelines)
    assert any(name in _tests("model") + _tests("evaluate") + _tests("build") for name in family.pipelines), (
        "tests: pictures beside its pipeline"
    )


def test_a_prefix_of_lora_keys_means_the_same_in_every_family() -> None:
    for prefixes in ([family.lora.prefixes for family in FAMILIES], [family.lora.flat_prefixes for family in FAMILIES]):
        meanings = {(prefix, component) for table_ in prefixes for prefix, component in table_.items()}
        assert len(meanings) == len({prefix for prefix, _ in meanings})


def test_no_code_knows_a_family_by_name() -> None:
    tables, names = ROOT / "src" / "quad" / "core" / "families", {signs.name for signs in SIGNS} | {family.name for family in FAMILIES}
    for file in ROOT.joinpath("src").rglob("*.py"):
        nodes = () if tables in file.parents else ast.walk(ast.parse(file.read_text("utf-8")))
        assert [node.value for node in nodes if isinstance(node, ast.Constant) and node.value in names] == [], file


def test_each_backend_is_some_targets_and_can_be_opened() -> None:
    assert set(BACKENDS) == {load_target(name).backend for name in target_names()}
    assert [module for module in BACKENDS.values() if not hasattr(importlib.import_module(module), "open_backend")] == []


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_is_described(name: str) -> None:
    assert re.search(rf"^\|[^|]*`{name}`[^|]*\|", _text("docs/passes.md"), re.MULTILINE), "docs/passes.md: its row"


def _blocks(language: str) -> list[str]:
    """Code of the page in one language."""
    page = _text("CONTRIBUTING.md")
    return [textwrap.dedent(code) for code in re.findall(rf"^ *```{language}\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL)]


def test_the_examples_of_the_page_work() -> None:
    (target,) = _blocks("json")
    assert msgspec.json.decode(target, type=Target).engines == ("ort",)
    sampler, update, row, _, family = _blocks("python")
    names: dict[str, Any] = {}
    for module in (contract, schedule, dataclasses, math):
        names.update(vars(module))
    exec(sampler, names)
    setup = contract.SamplerSetup(schedule=NoiseSchedule(), steps=5, settings=SamplerSettings(), rng=np.random.default_rng(0))
    solver, noise = names["make_ralston"](setup), np.random.default_rng(1).standard_normal((1, 4, 2, 2)).astype(np.float32)
    assert np.isfinite(run.SamplingRun(solver, run.Start(), 0).run(lambda x, t: 0.1 * x, noise)).all()
    names = {**vars(low_rank), **vars(lora_target), **vars(kinds)}
    exec(update, names)
    assert eval(row, names).update is names["vera_update"]
    names = dict(vars(table))
    exec(family, names)
    assert names["WATERCOLOUR"].folders == ("unet", "text_encoder", "tokenizer")


def test_the_page_names_the_places_that_are_checked_here() -> None:
    page = _text("CONTRIBUTING.md")
    absent = [place for place in re.findall(r"`((?:src|tests|docs)/[\w/.-]+)`", page) if not (ROOT / place).exists()]
    assert [place for place in absent if not re.search(r"NAME|TARGET|ralston", place)] == []
