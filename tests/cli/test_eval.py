"""`quad eval` and `quad ablate` on the tiny model: what is printed, what is written, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from quad.build.request import BuildRequest
from quad.cli.main import app
from quad.evaluate.ablation import cross_table as cross
from quad.evaluate.ablation import later
from quad.evaluate.ablation import measure_row as ablation
from quad.evaluate.ablation.later_truth import LaterCall
from quad.quantize.observe.probes import Probe
from quad.quantize.profile.anchor import CrossTable
from quad.runtime.bundle import open_bundle
from quad.zoo.samples import TASKS
from tests.evaluate.conftest import model_dir as model_dir

RUNNER = CliRunner()
ROW = {"name", "a8_fraction", "lora_bits", "psnr", "ssim", "lpips_toy", "fd_toy", "lora_rom_bytes", "unet_ms", "effect_gain"}
ENTRY = {
    "n",
    "psnr",
    "ssim",
    "lpips_toy",
    "fd_toy",
    "sim_d",
    "sim_image",
    "structure",
    "truth",
    "seed_control",
    "effect_gain",
    "effect_sqnr_db",
}


def _adapters(model: Path) -> list[str]:
    files = sorted((model / "adapters").glob("*/*.safetensors"))
    return [word for file in files for word in ("--adapter", f"{file.parent.name}={file}")]


def _json(*arguments: str | Path) -> dict[str, Any]:
    done = RUNNER.invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("\n") == 1
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def _refused(code: int, says: str, *arguments: str | Path) -> None:
    done = RUNNER.invoke(app, [*map(str, arguments), "--json"])
    assert (done.exit_code, done.stdout) == (code, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("quad: ")
    assert says in last


@pytest.fixture(scope="module")
def bundle(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("eval") / "phone"
    _json("build", model_dir, "-o", out, "--precision", "w8a16", "--distill-steps", "2", *_adapters(model_dir))
    return out


@pytest.fixture
def other_model(model_dir: Path, tmp_path: Path) -> Path:
    """The same model but for one weight."""
    copy = shutil.copytree(model_dir, tmp_path / "other")
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors[min(tensors)] = tensors[min(tensors)] + 1
    save_file(tensors, file)
    return copy


def test_eval_prints_the_fields_and_writes_the_page(bundle: Path, model_dir: Path, tmp_path: Path) -> None:
    facts = _json("eval", bundle, "--against", model_dir, "--n", "2", "-o", tmp_path / "r")
    assert facts["engine"] == "ort"
    assert set(facts["tasks"]) == set(TASKS)
    for task, entry in facts["tasks"].items():
        assert entry.keys() >= ENTRY
        assert entry["truth"].keys() >= {"fp", "quantized"}
        assert entry["seed_control"].keys() >= {"psnr", "fd_toy"}
        assert (entry["effect_gain"] is None) == (task == "text-to-image")
        if task != "text-to-image":
            assert entry["effect_gain"] == pytest.approx(1.0, abs=0.1)
            assert entry["effect_sqnr_db"] > 10
    assert json.loads((tmp_path / "r" / "eval.json").read_text()) == facts
    page = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert all(f'<section id="{task}">' in page for task in TASKS)


def test_one_sample_is_enough(bundle: Path, model_dir: Path) -> None:
    assert _json("eval", bundle, "--against", model_dir, "--n", "1")["tasks"]["removal"]["n"] == 1


def test_another_model_or_adapter_is_refused(bundle: Path, model_dir: Path, other_model: Path, tmp_path: Path) -> None:
    _refused(3, "of which the bundle was built", "eval", bundle, "--against", other_model, "--n", "1")
    strange = model_dir / "adapters" / "sketch" / "pytorch_lora_weights.safetensors"
    _refused(3, "adapter 'sticker'", "eval", bundle, "--against", model_dir, "--n", "1", "--adapter", f"sticker={strange}")


def test_a_call_that_cannot_be_done_is_one_line(bundle: Path, model_dir: Path, tmp_path: Path) -> None:
    _refused(1, "expected a bundle directory", "eval", tmp_path / "no", "--against", model_dir)
    _refused(1, "nowhere", "eval", bundle, "--against", tmp_path / "nowhere")
    _refused(2, "--n: expected 1 or more, found 0", "eval", bundle, "--against", model_dir, "--n", "0")
    _refused(2, "'abacus'", "eval", bundle, "--against", model_dir, "--engine", "abacus")
    _refused(2, "--n: expected 1 or more", "ablate", model_dir, "-o", tmp_path / "a", "--n", "0")
    _refused(2, "--rows: expected some of", "ablate", model_dir, "-o", tmp_path / "a", "--rows", "w2a2")
    _refused(1, "nowhere.safetensors", "ablate", model_dir, "-o", tmp_path / "a", "--adapter", f"ink={tmp_path}/nowhere.safetensors")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("x")
    _refused(2, "-o: expected a directory", "ablate", model_dir, "-o", tmp_path / "file")


def test_a_later_adapter_is_the_same_in_another_kind(
    bundle: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pair of matrices as a LoHa whose second product is ones: diffusers measures the one, the kind's formula the other."""
    pair = model_dir / "adapters" / "sketch" / "pytorch_lora_weights.safetensors"
    save_file(_as_loha(load_file(pair)), loha := tmp_path / "loha.safetensors")
    monkeypatch.setattr(later, "STRENGTHS", (0.5, 400.0))
    rng = np.random.default_rng(0)
    inputs = {
        "sample": rng.normal(size=(1, 9, 16, 16)),
        "timestep": np.array([500.0]),
        "encoder_hidden_states": rng.normal(size=(1, 32, 32)),
    }
    floats = {name: value.astype(np.float32) for name, value in inputs.items()}
    call = LaterCall(Probe(source="base", task="transform", run=0, inputs=floats, sigma_t=0.5), ("make it night",))
    adapters = later.LaterAdapters(model_dir, {"pair": pair, "loha": loha}, calls=lambda: [call], directory=tmp_path / "later")
    table = adapters.measure(open_bundle(bundle), "ort")
    for strengths in table.values():
        assert strengths["0.5"].effect_gain == pytest.approx(1.0, abs=0.05)
        assert strengths["0.5"].applied == pytest.approx(1.0, abs=2e-3)
        assert not strengths["400"].admitted
        assert "expected activations that lose at most" in strengths["400"].reason
    assert table["loha"]["0.5"].output_db == pytest.approx(table["pair"]["0.5"].output_db, abs=1.0)


def _as_loha(pairs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for key, down in pairs.items():
        if ".lora_A." in key:
            up = pairs[key.replace("lora_A", "lora_B")]
            name = "lora_unet_" + key.removeprefix("unet.").removesuffix(".lora_A.weight").replace(".", "_")
            ones_a, ones_b = np.zeros_like(up), np.ones_like(down)
            ones_a[:, 0] = 1.0
            roles = {"hada_w1_a": up, "hada_w1_b": down, "hada_w2_a": ones_a, "hada_w2_b": ones_b, "alpha": np.float32(2 * len(down))}
            tensors |= {f"{name}.{role}": np.asarray(value) for role, value in roles.items()}
    return tensors


@dataclass
class _Built:
    """Stands for a build: the module's bundle again, whatever was asked for."""

    bundle: Path
    asked: list[BuildRequest]

    def __call__(self, request: BuildRequest) -> _Built:
        self.asked.append(request)
        shutil.copytree(self.bundle, request.output)
        return self

    def to_json(self) -> dict[str, Any]:
        return {"profile": {"mode": "anchor", "qss": {"sketch": 0.2, "portrait": 0.1}}, "alignment": {}}


def test_ablate_measures_rows_once(bundle: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, builder = tmp_path / "a", _Built(bundle, [])
    monkeypatch.setattr(ablation, "build", builder)
    tables: list[Path] = []
    made = CrossTable(("a", "b"), ((1.0, 2.0), (4.0, 2.0)))
    monkeypatch.setattr(cross, "measure_cross_table", lambda model, _: (tables.append(model), made)[1])
    arguments = ("ablate", model_dir, "-o", out, "--rows", "lora-8,profile-own,profile-anchor", "--n", "1")
    facts = _json(*arguments)
    rows = {row["name"]: row for row in facts["rows"]}
    assert list(rows) == ["w8a16", "lora-8", "profile-anchor", "profile-own"]
    for row in rows.values():
        assert row.keys() >= ROW
        assert set(row["tasks"]) == set(TASKS) - ({"text-to-image"} if row["name"] == "profile-own" else set())
    whole, lora, anchor, *own = builder.asked
    assert (whole.lora_bits, lora.lora_bits, anchor.anchor) == (16, 8, "sketch")
    assert [list(request.adapters) for request in own] == [[name] for name in whole.adapters]
    assert all({sample.task for sample in request.samples} == set(request.adapters) for request in own)
    assert facts["cross_table"]["best"] == "b"
    assert {path.name for path in out.iterdir()} == {"rows.json", "cross.json", "ablate.json", "report.html", "pictures", "fp32"}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(f'<section id="{name}">' in page for name in rows)
    assert _json(*arguments) == facts
    assert (len(builder.asked), len(tables)) == (8, 1)


def test_a_file_that_is_no_rows_is_one_line(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[]")
    _refused(1, "expected rows of an earlier run", "ablate", model_dir, "-o", tmp_path, "--rows", "lora", "--n", "1")
