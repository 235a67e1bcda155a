"""The seam to a target's vendor: every table names a backend that opens, and what a build's request says of one reaches it."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from quad.compile.backend import BackendRequest, CompileContext, open_backend
from quad.compile.targets import check_options, load_target, target_names
from quad.core.component_call import ComponentCall
from quad.core.encoding import Encoding
from quad.core.errors import UsageError
from quad.core.profile import GroupRanges, Profile
from quad.core.progress import StageClock, silent
from quad.core.slots import SlotTable


@pytest.mark.parametrize("name", target_names())
def test_the_backend_of_every_target_opens_without_its_vendors_package(name: str, tmp_path: Path) -> None:
    target = load_target(name)
    backend = open_backend(BackendRequest(target, tmp_path / "phone"))
    backend.check()
    assert bool(backend.directories) == ("encodings" in target.options)
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_names_no_backend_has_that_of_graphs_which_engines_read(tmp_path: Path) -> None:
    backend = open_backend(BackendRequest(load_target("cpu"), tmp_path))
    assert (backend.needs_calls, dict(backend.requires), backend.directories) == (False, {}, ())


def test_a_group_has_its_profile_and_the_calls_that_its_graph_may_see(tmp_path: Path) -> None:
    first = Encoding(bits=16, signed=False, symmetric=False, scale=(1.0,), zero_point=(0,))
    second = replace(first, scale=(4.0,))
    profile = Profile(encodings={"unet": {"conv.in": first}}, groups=(GroupRanges(encodings={"unet": {"conv.in": second}}, mode="anchor"),))
    calls = [ComponentCall(component=part, source=source, inputs={}) for part in ("unet", "text_encoder") for source in ("base", "a", "b")]
    context = CompileContext(
        target=load_target("qnn-htp"),
        profile=profile,
        slots=SlotTable(()),
        clock=StageClock((), silent),
        scratch=tmp_path,
        calls=calls,
        group_of={"a": 0, "b": 1},
    )
    for group, (encoding, sources) in enumerate([(first, ["base", "a"]), (second, ["base", "a", "b"])]):
        own = context.of_group(group)
        assert own.profile.component("unet") == {"conv.in": encoding}
        assert [call.source for call in own.calls if call.component == "unet"] == sources
        assert [call.source for call in own.calls if call.component == "text_encoder"] == ["base", "a", "b"]


def test_an_unknown_backend_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"backend of target cpu: expected .*, found abacus; choose one of these"):
        open_backend(BackendRequest(replace(load_target("cpu"), backend="abacus"), tmp_path))


def test_a_target_refuses_the_options_of_another() -> None:
    check_options(load_target("qnn-htp"), ["soc", "encodings"])
    with pytest.raises(UsageError, match="--soc: expected a target that compiles for Android or Qualcomm, found openvino"):
        check_options(load_target("openvino"), ["soc"])


def test_options_reach_the_backend(tmp_path: Path) -> None:
    request = BackendRequest(load_target("qnn-htp"), tmp_path / "phone", {"soc": "sm8650", "encodings": tmp_path / "there"})
    backend = open_backend(request)
    assert dict(backend.requires) == {"soc": "SM8650", "htp_arch": "75"}
    assert [(directory.option, directory.path) for directory in backend.directories] == [("--encodings", tmp_path / "there")]


def test_a_target_of_one_chip_takes_one(tmp_path: Path) -> None:
    htp = load_target("qnn-htp")
    assert dict(open_backend(BackendRequest(htp, tmp_path, {"soc": ["sm8650"]})).requires) == {"soc": "SM8650", "htp_arch": "75"}
    with pytest.raises(UsageError, match=r"--soc: expected one chip for this target, found SM8650, SM8750; build a bundle for each"):
        open_backend(BackendRequest(htp, tmp_path, {"soc": ["SM8650", "SM8750"]}))


def test_a_file_for_any_cpu_takes_several_chips_beside(tmp_path: Path) -> None:
    litert = load_target("litert")
    backend = open_backend(BackendRequest(litert, tmp_path, {"soc": ["SM8650", "mt6993", "E9965"]}))
    backend.check()
    assert [chip.name for chip in backend.chips] == ["SM8650", "MT6993", "E9965"]
    with pytest.raises(UsageError, match=r"--soc: expected MT6853 .*, found MT1; choose among these"):
        open_backend(BackendRequest(litert, tmp_path, {"soc": "MT1"})).check()
