"""What a build is asked for is refused before anything is loaded, where it could not end well."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quad.build.request import BuildRequest
from quad.compile.targets import load_target, target_names
from quad.core.errors import UsageError
from quad.core.profile import MOST_GROUPS
from quad.quantize.profile.groups import DEFAULT_LOSS, GroupLimits


@pytest.mark.parametrize(
    ("output", "dump", "encodings", "says"),
    [
        ("phone", None, "phone", "--encodings: expected a directory apart from that of -o"),
        ("phone", None, "phone/qairt", "--encodings: expected a directory apart from that of -o"),
        ("all/phone", None, "all", "--encodings: expected a directory apart from that of -o"),
        ("phone", "phone/dump", None, "--dump-passes: expected a directory apart from that of -o"),
        ("phone", "phone.qairt", None, "--encodings: expected a directory apart from that of --dump-passes"),
        ("phone", "phone/../all", "all", "--encodings: expected a directory apart from that of --dump-passes"),
    ],
)
def test_directories_that_would_replace_each_other_are_refused(
    tmp_path: Path, output: str, dump: str | None, encodings: str | None, says: str
) -> None:
    """Each is renamed to its place as a whole: of two in one place the last alone is left, and the build says that it went well."""
    places = {name: tmp_path / path for name, path in (("dump_passes", dump), ("encodings", encodings)) if path is not None}
    with pytest.raises(UsageError, match=says):
        BuildRequest(tmp_path, {}, tmp_path / output, target="qnn-htp", **places).check()


def test_places_side_by_side_are_taken(tmp_path: Path) -> None:
    BuildRequest(tmp_path, {}, tmp_path / "phone", target="qnn-htp", dump_passes=tmp_path / "dump", encodings=tmp_path / "qairt").check()
    BuildRequest(tmp_path, {}, tmp_path / "phone", target="qnn-htp", soc="sm8650").check()


@pytest.mark.parametrize("given", [{"soc": "SM8650"}, {"encodings": Path("qairt")}])
def test_what_only_qnn_htp_reads_is_not_passed_over(tmp_path: Path, given: dict[str, object]) -> None:
    """A bundle for a CPU in place of one for the chip that was named."""
    with pytest.raises(UsageError, match=r"a target that compiles for .*Qualcomm, found cpu; leave it out or choose --target .*qnn-htp"):
        BuildRequest(tmp_path, {}, tmp_path / "phone", **given).check()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"max_loss": -0.5}, "--max-loss: expected 0 dB or more, found -0.5"),
        ({"max_loss": float("nan")}, "--max-loss: expected 0 dB or more, found nan"),
        ({"max_loss": float("inf")}, "--max-loss: expected 0 dB or more, found inf"),
        ({"max_profiles": 0}, "--max-profiles: expected 1 to 16, found 0"),
        ({"max_profiles": 17}, "--max-profiles: expected 1 to 16, found 17"),
    ],
)
def test_profiles_that_there_cannot_be(tmp_path: Path, given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        BuildRequest(tmp_path, {}, tmp_path / "phone", **given).check()


def test_how_many_profiles_there_may_be(tmp_path: Path) -> None:
    def limits(**given: Any) -> GroupLimits | None:
        request = BuildRequest(tmp_path, {}, tmp_path / "phone", **given)
        request.check()
        return request.profile_limits

    assert limits() is None
    assert limits(max_profiles=2) == GroupLimits(DEFAULT_LOSS, 2)
    assert limits(max_loss=0.5) == GroupLimits(0.5, MOST_GROUPS)
    assert limits(max_profiles=3, target="qnn-htp") == GroupLimits(DEFAULT_LOSS, 3)


def test_an_unknown_chip_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--soc: expected SM8350 .* found SM1; choose one of these"):
        BuildRequest(tmp_path, {}, tmp_path / "phone", target="qnn-htp", soc="SM1").check()


DEFAULTS = {"cpu": "mixed:80", "openvino": "mixed:80", "qnn-htp": "w8a16", "litert": "w8a16"}


@pytest.mark.parametrize("target", DEFAULTS)
def test_the_precision_follows_the_target_until_somebody_says(tmp_path: Path, target: str) -> None:
    request = BuildRequest(tmp_path, {}, tmp_path / "phone", target=target)
    assert request.resolved_precision == DEFAULTS[target]
    assert replace(request, precision="w8a8").resolved_precision == "w8a8"
    for other in target_names():
        assert replace(request, target=other).resolved_precision == load_target(other).default_precision
