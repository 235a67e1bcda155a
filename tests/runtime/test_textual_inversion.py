"""Words that stand for vectors: loaded by a pipeline, brought by a bundle, refused where they do not fit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from quad.core.errors import CompatibilityError, InputError, UnsupportedError, UsageError, VerificationError
from quad.core.manifest import EMBEDDINGS_FILE, TextSpec
from quad.runtime.pipeline import QuadPipeline
from tests.runtime.conftest import HIDDEN, LENGTH, WORDS, save_graph, value

FIRST = len(WORDS)
VECTORS = np.random.default_rng(2).standard_normal((2, HIDDEN)).astype(np.float32)


def _open_text_encoder(path: Path) -> None:
    """The tiny bundle's text encoder with the input for vectors."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((FIRST, HIDDEN)).astype(np.float32)
    constants = {"table": table, "first": np.array(FIRST), "last": np.array(FIRST - 1), "axis": np.array([-1])}
    nodes = [
        helper.make_node("Min", ["input_ids", "last"], ["ids"]),
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("GreaterOrEqual", ["input_ids", "first"], ["is_vector"]),
        helper.make_node("Unsqueeze", ["is_vector", "axis"], ["places"]),
        helper.make_node("Where", ["places", "embeddings", "rows"], ["last_hidden_state"]),
    ]
    inputs = [value("input_ids", [1, LENGTH], TensorProto.INT64), value("embeddings", [1, LENGTH, HIDDEN])]
    shutil.rmtree(path.parent)
    save_graph(path, "text_encoder", nodes, inputs, value("last_hidden_state", [1, LENGTH, HIDDEN]), constants)


@pytest.fixture
def open_bundle_dir(bundle_copy: Path, rewrite: Callable[..., None]) -> Path:
    _open_text_encoder(bundle_copy / "text_encoder/model.onnx")
    rewrite(bundle_copy, text=TextSpec(length=LENGTH, pad_id=0, hidden=HIDDEN, first_vector_id=FIRST))
    return bundle_copy


def saved(path: Path, vectors: NDArray[Any], key: str = "emb_params") -> Path:
    save_file({key: vectors}, path)
    return path


def picture(pipe: QuadPipeline, prompt: str) -> NDArray[np.uint8]:
    output = pipe(prompt, seed=1)
    assert not output.notes
    return np.asarray(output.images[0])


def test_a_word_counts_from_the_next_prompt_on(open_bundle_dir: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    pipe = QuadPipeline.from_pretrained(open_bundle_dir)
    before = picture(pipe, "the car")
    np.testing.assert_array_equal(before, picture(QuadPipeline.from_pretrained(tiny_bundle), "the car"))
    file = saved(tmp_path / "My Word.safetensors", VECTORS)
    assert pipe.load_textual_inversion(file) == ("My Word",)
    assert pipe.load_textual_inversion(file, token="<cat>") == ("<cat>",)
    assert pipe.textual_inversions == ("My Word", "<cat>")
    one, other = picture(pipe, "the my word car"), picture(pipe, "the <cat> car")
    np.testing.assert_array_equal(one, other)
    assert (one != before).any()
    assert (picture(pipe, "the (<cat>:1.6) car") != one).any()
    np.testing.assert_array_equal(picture(pipe, "the car"), before)
    pipe.unload_textual_inversion("<cat>")
    assert "does not know" in pipe("<cat>").notes[0]
    with pytest.raises(UsageError, match="token: expected one of My Word, found '<cat>'"):
        pipe.unload_textual_inversion("<cat>")
    pipe.unload_textual_inversion()
    assert pipe.textual_inversions == ()


def test_a_bundle_brings_words(open_bundle_dir: Path, rewrite: Callable[..., None]) -> None:
    save_file({"ohwx": VECTORS}, open_bundle_dir / EMBEDDINGS_FILE)
    text = TextSpec(length=LENGTH, pad_id=0, hidden=HIDDEN, first_vector_id=FIRST)
    rewrite(open_bundle_dir, text=text)
    pipe = QuadPipeline.from_pretrained(open_bundle_dir)
    assert pipe.textual_inversions == ("ohwx",)
    assert (picture(pipe, "ohwx car") != picture(pipe, "car")).any()
    (open_bundle_dir / EMBEDDINGS_FILE).write_bytes(b"[]")
    rewrite(open_bundle_dir, text=text)
    with pytest.raises(VerificationError, match=r"embeddings\.safetensors: expected safetensors"):
        QuadPipeline.from_pretrained(open_bundle_dir)


def test_what_does_not_fit(open_bundle_dir: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    pipe = QuadPipeline.from_pretrained(open_bundle_dir)
    wide = saved(tmp_path / "wide.safetensors", np.ones((1, HIDDEN + 1), np.float32))
    with pytest.raises(
        CompatibilityError, match=rf"wide\.safetensors, 'wide': expected vectors of width {HIDDEN}.*found \(1, {HIDDEN + 1}\)"
    ):
        pipe.load_textual_inversion(wide)
    long = saved(tmp_path / "long.safetensors", np.ones((LENGTH + 1, HIDDEN), np.float32))
    with pytest.raises(CompatibilityError, match=rf"expected 1 to {LENGTH} vectors, found {LENGTH + 1}"):
        pipe.load_textual_inversion(long)
    with pytest.raises(InputError, match="no such file"):
        pipe.load_textual_inversion(tmp_path / "none.safetensors")
    with pytest.raises(UsageError, match="expected a word, found ' '"):
        pipe.load_textual_inversion(saved(tmp_path / "a.safetensors", VECTORS), token=" ")
    assert pipe.textual_inversions == ()
    with pytest.raises(UnsupportedError, match=r"expected a bundle whose text encoder takes vectors.*build the bundle again"):
        QuadPipeline.from_pretrained(tiny_bundle).load_textual_inversion(tmp_path / "a.safetensors")
