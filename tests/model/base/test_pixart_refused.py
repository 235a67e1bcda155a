"""Transformers, tokenizers and targets that are not for each other are refused by name; what is fetched of a hub's model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from quad.core.errors import InputError, UnsupportedError
from quad.model.base.family import require_unet
from quad.model.base.hub import files_to_read
from quad.model.base.open import open_model
from tests.pixart import plain_transformer, save_pixart, transformer


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pixart(tmp_path_factory.mktemp("pixart") / "model")


@pytest.fixture
def copied(directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(directory, tmp_path / "model"))


def _edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_additional_conditions": True}, "expected a transformer conditioned on text alone, found use_additional_conditions"),
        ({"use_additional_conditions": None, "sample_size": 128}, "found use_additional_conditions (size and aspect ratio)"),
        ({"attention_type": "gated"}, "expected plain attention to a projected caption, found attention_type='gated'"),
        ({"caption_channels": None}, "caption_channels=None"),
        ({"_class_name": "SanaTransformer2DModel"}, "found SanaTransformer2DModel (Sana)"),
    ],
)
def test_other_transformers_are_refused_by_what_they_have(changes: dict[str, object], says: str, copied: Path) -> None:
    _edit(copied / "transformer" / "config.json", **changes)
    with pytest.raises(UnsupportedError) as caught:
        open_model(copied)
    assert says in str(caught.value)


def test_parts_that_do_not_belong_together_are_refused(copied: Path) -> None:
    transformer(caption_channels=20).save_pretrained(copied / "transformer")
    with pytest.raises(InputError, match=r"text_encoder: expected 20 numbers per token \(caption_channels\), found 12"):
        open_model(copied)
    plain_transformer(in_channels=8, out_channels=16).save_pretrained(copied / "transformer")
    with pytest.raises(UnsupportedError, match="transformer: expected 4 or 8 output channels, found 16"):
        open_model(copied)


def test_a_tokenizer_that_is_not_t5s_own_is_refused(copied: Path) -> None:
    _edit(copied / "tokenizer" / "tokenizer_config.json", pad_token="</s>")
    with pytest.raises(InputError, match=r"expected pad id 0 \(text_encoder/config.json\), found 1"):
        open_model(copied)


def test_what_is_fetched_of_one(directory: Path) -> None:
    names = [file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file()]
    texts_wanted, weights = files_to_read("artist/pixart", names)
    assert weights == [
        "transformer/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
    ]  # fmt: skip
    assert set(texts_wanted) | set(weights) == set(names)


def test_a_chip_of_integers_alone_asks_for_a_u_net(directory: Path) -> None:
    with pytest.raises(UnsupportedError, match="expected a U-Net, as targets of integers alone need, found a transformer; build it with"):
        require_unet(directory)
