"""`quad run` and `quad inspect` end to end on a tiny bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from quad.cli import run
from quad.cli.main import app
from quad.cli.run import _note_unread
from quad.core.errors import StoppedError
from quad.core.manifest import LatentPreview
from quad.core.storage import files
from quad.core.storage.pack import write_pack
from quad.runtime import QuadPipeline, batch, open_bundle
from quad.runtime.engines.ort import OrtEngine
from quad.runtime.stages import PipelineOutput, Prepared

RUNNER = CliRunner()


def _run(bundle: Path, out: Path, *arguments: str) -> dict[str, Any]:
    done = RUNNER.invoke(app, ["run", str(bundle), "-o", str(out), "--json", "--no-parameters", *arguments])
    assert done.exit_code == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    return facts


def _save(path: Path, array: NDArray[np.uint8]) -> str:
    Image.fromarray(array).save(path)
    return str(path)


def test_a_picture_is_written_and_json_tells_how(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "a.png"
    facts = _run(tiny_bundle, out, "--task", "text-to-image", "--prompt", "car night", "--seed", "5", "--size", "16x16")
    with Image.open(out) as picture:
        assert (picture.format, picture.size) == ("PNG", (16, 16))
    assert (facts["output"], facts["task"], facts["adapter"], facts["seed"]) == (str(out), "text-to-image", None, 5)
    assert facts["timings_ms"]["total"] > 0
    assert not list(out.parent.glob(".*"))


def test_the_same_seed_gives_the_same_file_and_a_drawn_seed_is_told(tiny_bundle: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    seed = _run(tiny_bundle, first, "--task", "text-to-image")["seed"]
    _run(tiny_bundle, second, "--task", "text-to-image", "--seed", str(seed))
    assert first.read_bytes() == second.read_bytes()


def test_a_file_says_how_its_picture_was_made(tiny_bundle: Path, tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    given = ("--task", "transform", "--image", _save(tmp_path / "in.png", picture), "--seed", "1", "--prompt", "night", "--guidance", "3")
    done = RUNNER.invoke(app, ["run", str(tiny_bundle), "-o", str(tmp_path / "a.png"), *given, "--num-images", "2", "--mark"])
    assert done.exit_code == 0, done.stderr
    for name, seed in (("a-1.png", 1), ("a-2.png", 2)):
        with Image.open(tmp_path / name) as image:
            text, xmp = image.info["parameters"], image.info["XML:com.adobe.xmp"]
        assert text.splitlines()[0].startswith("night<lora:transform:1>")
        assert f"CFG scale: 3, Seed: {seed}, Size: 16x16, Model: " in text
        assert "compositeWithTrainedAlgorithmicMedia" in xmp


def test_pictures_that_are_done_stay(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Ctrl-C between two pictures: what was made before is on the disk, and nothing of the next."""
    finish = QuadPipeline.finish

    def stop_at_the_third(pipe: QuadPipeline, prepared: Prepared, *rest: Any) -> PipelineOutput:
        if prepared.request.seed == 9:
            raise StoppedError("picture 3: stopped")
        return finish(pipe, prepared, *rest)

    monkeypatch.setattr(QuadPipeline, "finish", stop_at_the_third)
    arguments = ["--task", "text-to-image", "--seed", "7", "--num-images", "4", "-o", str(tmp_path / "a.png")]
    done = RUNNER.invoke(app, ["run", str(tiny_bundle), *arguments])
    assert done.exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-1.png", "a-2.png"]


def test_no_more_pictures_than_a_call_takes() -> None:
    assert run.MOST_PICTURES == batch.MOST_PICTURES


def test_a_certificate_that_does_not_sign_is_told_before_a_picture_is_made(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("c2pa")
    arguments = ["run", str(tiny_bundle), "--task", "text-to-image", "-o", str(tmp_path / "a.png"), "--sign", str(tmp_path / "none.pem")]
    done = RUNNER.invoke(app, arguments)
    assert done.exit_code == 1
    assert "none.pem: expected a PEM file of a certificate chain and its key, found none" in done.stderr
    assert not (tmp_path / "a.png").exists()


def test_wishes_reach_the_pipeline(tiny_bundle: Path, tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    given = ("--task", "transform", "--image", _save(tmp_path / "in.png", picture), "--seed", "1", "--prompt", "night")
    plain, out = tmp_path / "a.png", tmp_path / "b.png"
    _run(tiny_bundle, plain, *given)
    for wish in (("--guidance", "3"), ("--guidance", "3", "--negative-prompt", "car"), ("--strength", "0.5")):
        before = out.read_bytes() if out.is_file() else plain.read_bytes()
        _run(tiny_bundle, out, *given, *wish)
        assert out.read_bytes() not in (before, plain.read_bytes())
    done = RUNNER.invoke(app, ["run", str(tiny_bundle), "-o", str(out), *given, "--image-guidance", "2"])
    assert done.exit_code == 2
    assert "image_guidance_scale: expected a task with picture guidance, found transform, which has none" in done.stderr


def test_threads_reach_the_engine(tiny_bundle: Path, tmp_path: Path, spy: Any) -> None:
    asked = spy(OrtEngine, "load", lambda _engine, _file, threads, _lean=False: threads)
    _run(tiny_bundle, tmp_path / "a.png", "--task", "text-to-image", "--engine", "ort", "--threads", "1")
    assert set(asked) == {1}


def test_any_sampler_can_be_named(tiny_bundle: Path, tmp_path: Path) -> None:
    given = ("--task", "text-to-image", "--seed", "1", "--prompt", "the car")
    facts = _run(tiny_bundle, tmp_path / "a.png", *given, "--sampler", "lcm:2")
    assert (facts["sampler"], facts["guidance"]) == ("lcm:2", 1.0)
    assert _run(tiny_bundle, tmp_path / "b.png", *given)["sampler"] == "euler:3"
    assert _run(tiny_bundle, tmp_path / "b.png", *given, "--sampler", "dpmsolver-sde-karras", "--steps", "2")["sampler"] == (
        "dpmsolver-sde-karras:2"
    )
    done = RUNNER.invoke(app, ["run", str(tiny_bundle), "-o", str(tmp_path / "c.png"), *given, "--sampler", "abacus"])
    assert done.exit_code == 2
    assert "sampler: expected one of ddim, " in done.stderr


def test_several_pictures_and_what_they_are_becoming(bundle_copy: Path, tmp_path: Path, rewrite: Any) -> None:
    given = ("--task", "text-to-image", "--seed", "1", "--prompt", "the car")
    several = _run(bundle_copy, tmp_path / "a.png", *given, "--num-images", "2", "--preview-every", "2")
    assert (several["outputs"], several["seeds"]) == ([str(tmp_path / f"a-{number}.png") for number in (1, 2)], [1, 2])
    assert several["output"] == several["outputs"][0]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["a-1.png", "a-2.png"]  # an older bundle knows no colours
    single = _run(bundle_copy, tmp_path / "b.png", "--task", "text-to-image", "--seed", "2", "--prompt", "the car")
    assert (tmp_path / "a-2.png").read_bytes() == Path(single["output"]).read_bytes()
    rewrite(bundle_copy, preview=LatentPreview(((0.5,) * 4,) * 3, (0.0, 0.0, 0.0)))
    _run(bundle_copy, tmp_path / "c.png", *given, "--num-images", "2", "--preview-every", "2")
    previews = sorted(path.name for path in tmp_path.glob("c*.preview*"))
    assert previews == ["c-1.preview-02.png", "c-2.preview-02.png"]
    with Image.open(tmp_path / previews[0]) as picture:
        assert picture.size == (16, 16)


def test_brackets_weigh_words_unless_they_are_plain(tiny_bundle: Path, tmp_path: Path) -> None:
    given = ("--task", "text-to-image", "--seed", "1", "--prompt")
    pictures = []
    for name, prompt, *syntax in (
        ("a", "the car"),
        ("b", "the (car:1.5)"),
        ("c", "the (car)", "--prompt-syntax", "plain"),
        ("d", "the car BREAK"),
    ):
        facts = _run(tiny_bundle, tmp_path / f"{name}.png", *given, prompt, *syntax)
        pictures.append((tmp_path / f"{name}.png").read_bytes())
    assert len(set(pictures)) == 3
    assert pictures[0] == pictures[3]
    assert facts["notes"] == ["prompt: BREAK begins chunk 2, which this bundle has not (--prompt-chunks); its parts were read as one"]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("=a.safetensors", "--embedding: expected NAME=FILE"),
        ("cat=", "--embedding: expected NAME=FILE"),
        ("<cat>=none.safetensors", "expected a textual-inversion file, found no such file"),
    ],
)
def test_an_embedding_that_is_none(tiny_bundle: Path, tmp_path: Path, value: str, says: str) -> None:
    done = RUNNER.invoke(app, ["run", str(tiny_bundle), "-o", str(tmp_path / "a.png"), "--task", "text-to-image", "--embedding", value])
    assert done.exit_code in (1, 2)
    assert says in done.stderr


def test_an_embedding_that_no_prompt_names_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    for words, prompts, told in (
        (("cat",), ("a (CAT:1.2)", ""), False),
        (("cat", "my dog"), ("", "a my  dog, red"), False),
        (("cat",), ("a category", "a tree"), True),
    ):
        _note_unread(words, Path("x.safetensors"), prompts)
        assert ("note: embedding x.safetensors: it stands for 'cat'" in capsys.readouterr().err) is told


def test_a_task_brings_its_adapter_and_adapters_can_be_mixed(tiny_bundle: Path, tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    given = ("--task", "transform", "--image", _save(tmp_path / "in.png", picture), "--seed", "1")
    assert _run(tiny_bundle, tmp_path / "a.png", *given)["adapter"] == "transform"
    mixed = _run(tiny_bundle, tmp_path / "b.png", *given, "--adapter", "transform:0.5", "--adapter", "removal")
    assert mixed["adapter"] == ["transform", "removal"]
    assert mixed["adapters"] == {"transform": 0.5, "removal": 1.0}


def test_notes_go_to_stderr(tiny_bundle: Path, tmp_path: Path, picture: NDArray[np.uint8], mask: NDArray[np.uint8]) -> None:
    image = _save(tmp_path / "in.png", picture)
    wide = _save(tmp_path / "mask.png", np.repeat(mask, 2, axis=1))
    arguments = ["--task", "removal", "--image", image, "--mask", wide, "--prompt", "remove the zeppelin"]
    done = RUNNER.invoke(app, ["run", str(tiny_bundle), "-o", str(tmp_path / "a.png"), "--json", *arguments])
    notes = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert any("zeppelin" in line for line in notes)
    assert any("mask" in line for line in notes)
    assert [f"note: {line}" for line in json.loads(done.stdout)["notes"]] == notes


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--task", "paint"], 2, "expected one of removal, sketch, text-to-image, transform, found 'paint'"),
        (["--task", "transform"], 2, "expected a picture"),
        (["--task", "transform", "--image", "nowhere.png"], 1, "nowhere.png"),
        (["--task", "text-to-image", "--adapter", "ghost"], 2, "'ghost'"),
        (["--task", "text-to-image", "--adapter", "ghost.safetensors"], 2, "pack it first: quad adapt BUNDLE NAME=FILE -o NAME.qpack"),
        (["--task", "text-to-image", "--engine", "abacus"], 2, "'abacus'"),
        (["--task", "text-to-image", "--size", "32x16"], 2, "expected one of the bundle's sizes, 16x16, found 32x16"),
        (["--task", "text-to-image", "--size", "16,32"], 2, "--size: expected one size for one picture, found '16,32'"),
        (["--task", "text-to-image", "--size", "16 by 16"], 2, "--size: expected WIDTHxHEIGHT or N, in pixels, found '16 by 16'"),
    ],
)
def test_a_call_that_cannot_be_done_writes_nothing(tiny_bundle: Path, tmp_path: Path, arguments: list[str], code: int, says: str) -> None:
    done = RUNNER.invoke(app, ["run", str(tiny_bundle), "-o", str(tmp_path / "a.png"), "--json", *arguments])
    assert (done.exit_code, done.stdout) == (code, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_leaves_nothing(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    done = RUNNER.invoke(app, ["run", str(tiny_bundle), "-o", str(tmp_path / "a.png"), "--task", "text-to-image"])
    assert done.exit_code == 1
    assert "disk full" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_a_flipped_byte_is_refused_by_run_and_inspect(bundle_copy: Path, tmp_path: Path) -> None:
    graph = bundle_copy / "unet" / "model.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    for arguments in (["run", str(bundle_copy), "--task", "text-to-image", "-o", str(tmp_path / "a.png")], ["inspect", str(bundle_copy)]):
        done = RUNNER.invoke(app, [*arguments, "--json"])
        assert (done.exit_code, done.stdout) == (3, "")
        assert done.stderr.count("\n") == 1


def test_inspect_tells_what_a_bundle_holds(tiny_bundle: Path) -> None:
    done = RUNNER.invoke(app, ["inspect", str(tiny_bundle), "--json"])
    facts, bundle = json.loads(done.stdout), open_bundle(tiny_bundle)
    assert (facts["kind"], facts["slots"]) == ("bundle", len(bundle.slots.slots))
    assert (facts["profile_digest"], facts["slots_digest"]) == (bundle.profile.digest, bundle.slots.digest)
    assert set(facts["adapters"]) == {"transform", "removal", "sketch"}
    assert facts["adapters"]["sketch"]["rank"] == 4
    lines = RUNNER.invoke(app, ["inspect", str(tiny_bundle)]).stdout
    assert "adapter sketch: rank 4, 16 bits" in lines
    assert "pictures 16x16\n" in lines


def test_inspect_tells_for_which_chip_a_bundle_is(bundle_copy: Path, rewrite: Any, tiny_bundle: Path) -> None:
    rewrite(bundle_copy, requires={"soc": "SM8750", "htp_arch": "79"})
    facts = json.loads(RUNNER.invoke(app, ["inspect", str(bundle_copy), "--json"]).stdout)
    assert facts["details"]["requires"] == {"soc": "SM8750", "htp_arch": "79"}
    assert "needs htp_arch 79, soc SM8750" in RUNNER.invoke(app, ["inspect", str(bundle_copy)]).stdout.splitlines()
    assert "needs" not in RUNNER.invoke(app, ["inspect", str(tiny_bundle)]).stdout


def test_run_and_inspect_load_no_torch(tiny_bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom quad.cli.main import app\n"
        f"for call in (['run', {str(tiny_bundle)!r}, '--task', 'text-to-image', '-o', {str(tmp_path / 'a.png')!r}],"
        f" ['inspect', {str(tiny_bundle)!r}]):\n"
        "    try: app(call)\n"
        "    except SystemExit as done: assert not done.code, done.code\n"
        "bad = {'torch', 'diffusers', 'transformers', 'onnx', 'onnx_ir'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_pack_at_hand_is_used_by_its_path(tiny_bundle: Path, tmp_path: Path, ink: Any) -> None:
    pack = tmp_path / "later=odd" / "ink.qpack"
    pack.parent.mkdir()
    write_pack(pack, *ink)
    given, pixels = ("--task", "text-to-image", "--prompt", "car", "--seed", "1"), []
    for adapter in ((), ("--adapter", str(pack)), ("--adapter", f"{pack}:0.5")):
        facts = _run(tiny_bundle, tmp_path / "a.png", *given, *adapter)
        assert facts["adapters"] == ({"ink": float(adapter[1].rpartition(":")[2]) if adapter[1][-1] == "5" else 1.0} if adapter else {})
        with Image.open(tmp_path / "a.png") as image:
            pixels.append(np.asarray(image))
    assert (pixels[1] != pixels[0]).any()
    assert (pixels[2] != pixels[1]).any()
    pack.write_bytes(pack.read_bytes()[:-1] + b"x")
    done = RUNNER.invoke(app, ["run", str(tiny_bundle), "-o", str(tmp_path / "b.png"), *given, "--adapter", str(pack)])
    assert done.exit_code == 3
    assert not (tmp_path / "b.png").exists()
