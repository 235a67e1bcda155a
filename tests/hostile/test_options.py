"""Option values, recipes and hub ids that cannot be: one line, the right exit code, nothing written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from quad.core.errors import InputError, QuadError, UsageError
from quad.model.base.hub import resolve_model
from quad.zoo import calibration
from tests.hostile.refusal import quad_refuses, refused


@pytest.fixture(autouse=True)
def plain_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """What calibration would draw before the options are looked at, small."""
    monkeypatch.setattr(calibration, "PICTURE_PX", 16)


@pytest.mark.parametrize(
    "words",
    [
        *(f"--size {n}" for n in ("63", "0", "-64", "1", "65", "8256", "1000000000000", "nan", "1e3", "x")),
        *(
            f"--sampler {kind}"
            for kind in (
                "nonsense",
                "ddim:0",
                "ddim:-1",
                "ddim:x",
                "ddim:",
                "ddim:1:2",
                "ddim:9999999999",
                "DDIMS",
                ":5",
                "olss",
                "ddim:\u0663",
            )
        ),
        *(f"--min-energy {share}" for share in ("2", "-0.1", "nan", "inf", "x")),
        *(f"--max-rank {rank}" for rank in ("0", "-1", "1.5", "99999999999999")),
        *(f"--lora-bits {bits}" for bits in ("0", "7", "32", "-8")),
        *(f"--distill-steps {steps}" for steps in ("-1", "x")),
        *(f"--lambda {weight}" for weight in ("nan", "inf", "-1")),
        *(f"--precision {precision}" for precision in ("w0a0", "mixed:", "mixed:-1", "mixed:nan", "mixed:101", "fp4", "W8A16")),
        *(f"--target {target}" for target in ("abacus", "../cpu", "cpu;rm", "qnn_htp")),
        *(f"--anchor {anchor}" for anchor in ("ghost", "../../x", "base")),
        "--soc SM8750",
        "--encodings here",
        *(
            f"--adapter {value}"
            for value in ("ink", "=a", "ink=", "../ink=a", "auto=a", "base=a", "a/b=c", ".=a", "-x=a", "\u00e9=a", "a\x1b=b")
        ),
        "--adapter ink=a --adapter ink=b",
        "--abacus 3",
    ],
)
def test_values_of_a_build(words: str, place: Path, out: Path) -> None:
    """They are refused before the model is looked at, which here is none."""
    option = words.split(" ")[0]
    quad_refuses(["build", place, "-o", out / "phone", *words.split(" ")], QuadError, option.removeprefix("--"), out)


def test_an_adapter_that_is_not_there(model_dir: Path, out: Path) -> None:
    quad_refuses(["build", model_dir, "-o", out / "phone", "--adapter", "ink=nowhere.safetensors"], InputError, "nowhere.safetensors", out)


@pytest.mark.parametrize(
    "words",
    [
        *(
            f"--adapter {value}"
            for value in ("ghost", "sketch:nan", "sketch:inf", "sketch:-inf", "sketch:x", "sketch:1:2", "../sketch", ":1")
        ),
        "--adapter sketch --adapter sketch:2",
        *(f"--steps {steps}" for steps in ("0", "-1", "1001", "99999999999999999999", "x")),
        *(f"--seed {seed}" for seed in ("-1", "x", "1.5")),
        *(f"--strength {share}" for share in ("0.5", "nan", "0")),
        *(f"--guidance {scale}" for scale in ("nan", "inf", "x")),
        "--image-guidance 2",
        *(f"--engine {engine}" for engine in ("abacus", "../ort", "os.system")),
    ],
)
def test_values_of_a_run(words: str, tiny_bundle: Path, out: Path) -> None:
    quad_refuses(["run", tiny_bundle, "--task", "text-to-image", "-o", out / "a.png", *words.split(" ")], QuadError, "", out)


_RECIPES = {
    "no TOML": b"precision: float",
    "half a string": b'precision = "float',
    "bytes": b"\xff\xfe",
    "deep lists": b"x = " + b"[" * 50_000,
    "an unknown option": b"abacus = 3",
    "a list for a word": b'precision = ["float"]',
    "a word for a number": b'max-rank = "5"',
    "a truth for a number": b"size = true",
    "an option twice": b"size = 64\nsize = 128",
    "a table": b"[size]\nx = 1",
    "NaN": b"min-energy = nan",
    "a size of none": b"size = 63",
    "a number past 64 bits": b"max-rank = 99999999999999999999999",
    "an adapter without a path": b'adapter = ["ink"]',
    "an adapter's odd name": b'adapter = ["../ink=a.safetensors"]',
    "2 MB": b"#" * (2 * 2**20),
}


@pytest.mark.parametrize("name", _RECIPES)
def test_recipes(name: str, place: Path, out: Path) -> None:
    (place / "r.toml").write_bytes(_RECIPES[name])
    quad_refuses(["build", place, "-o", out / "phone", "--recipe", place / "r.toml"], QuadError, "expected", out)


@pytest.mark.parametrize("make", [os.mkfifo, lambda file: file.symlink_to("/dev/zero"), os.mkdir, lambda file: file.symlink_to(file)])
def test_recipes_that_are_no_files(make: Callable[[Path], object], model_dir: Path, place: Path, out: Path) -> None:
    make(place / "r.toml")
    quad_refuses(["build", model_dir, "-o", out / "phone", "--recipe", place / "r.toml"], InputError, "expected a recipe file", out)


@pytest.mark.parametrize(
    "text",
    [
        "owner/name@../..",
        "owner/name@../../../..",
        "owner/name@/etc",
        "owner/name@refs/../../x",
        "owner/..",
        "../name",
        "owner/name/",
        "/nowhere",
        "owner/na..me",
        "owner/name--x",
        "https://example.com/model",
        "owner/name@",
        "owner/name@\n",
        "owner\\name",
        "",
        " ",
        "o/" + "x" * 5000,
        "a\0b",
        "owner/name@a@b",
    ],
)
def test_hub_ids_that_lead_elsewhere(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is laid so that a revision of dots would find a directory."""
    hub = tmp_path / "hub"
    (hub / "models--owner--name" / "snapshots" / "x").mkdir(parents=True)
    (hub / "models--owner--name" / "refs").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.chdir(tmp_path)
    refused(InputError, "expected", lambda: resolve_model(text))


@pytest.mark.parametrize("place_of", ["a file", "a full directory", "below a file", "a name of 5,000 letters"])
def test_outputs_that_cannot_be(place_of: str, model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_bytes(b"mine")
    output = {"a file": "file", "a full directory": "full", "below a file": "file/phone", "a name of 5,000 letters": "x" * 5000}[place_of]
    before = sorted(tmp_path.rglob("*"))
    quad_refuses(["build", model_dir, "-o", tmp_path / output], QuadError, "choose another")
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "full" / "mine").read_bytes() == (tmp_path / "file").read_bytes() == b"mine"


def test_a_usage_error_is_of_its_own_class(model_dir: Path, out: Path) -> None:
    quad_refuses(["build", model_dir, "-o", out / "phone", "--size", "63"], UsageError, "--size: expected multiples of 64", out)
