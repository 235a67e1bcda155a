"""What a PNG says of how it was made, read as other programs read it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from quad.runtime.provenance.facts import PictureFacts
from quad.runtime.provenance.parameters import parameters_text, sampler_fields
from quad.runtime.provenance.png import PngOptions, encode_png

FACTS = PictureFacts(
    prompt="a red house, (big:1.2)",
    negative_prompt="blurry",
    sampler="dpmsolver++-karras:20",
    guidance=7.5,
    seed=42,
    size=(512, 768),
    model=("my-sd", "ab" * 32),
    adapters={"ink": 1.0, "lcm": 0.5},
)
# As A1111's own reader takes the last line apart.
FIELD = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def read_back(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and fields, as a reader of that format understands them."""
    *lines, last = text.split("\n")
    prompt, negative, into_negative = [], [], False
    for line in lines:
        if line.startswith("Negative prompt:"):
            into_negative, line = True, line.removeprefix("Negative prompt:").strip()
        (negative if into_negative else prompt).append(line)
    fields = {key: json.loads(value) if value.startswith('"') else value for key, value in FIELD.findall(last)}
    return "\n".join(prompt), "\n".join(negative), fields


def saved(picture: Image.Image, facts: PictureFacts = FACTS, **options: object) -> Image.Image:
    return Image.open(BytesIO(encode_png(picture, facts, PngOptions(**options))))  # type: ignore[arg-type]


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8))


def test_the_parameters_are_read_back_as_they_were(picture: Image.Image) -> None:
    image = saved(picture)
    prompt, negative, fields = read_back(image.text["parameters"])  # type: ignore[attr-defined]
    assert prompt == "a red house, (big:1.2)<lora:ink:1><lora:lcm:0.5>"
    assert negative == "blurry"
    version = fields.pop("Version")
    assert version.startswith("quad ")
    assert fields == {
        "Steps": "20", "Sampler": "DPM++ 2M", "Schedule type": "Karras", "CFG scale": "7.5", "Seed": "42", "Size": "512x768",
        "Model": "my-sd", "Bundle digest": "ab" * 5,
    }  # fmt: skip
    np.testing.assert_array_equal(np.asarray(image), np.asarray(picture))


@given(
    st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=40),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20),
)
def test_any_text_is_read_back(prompt: str, name: str) -> None:
    facts = replace(FACTS, prompt=f"x{prompt}", negative_prompt="", adapters={}, model=(name, "0" * 64))
    text, negative, fields = read_back(parameters_text(facts))
    assert (text, negative) == (f"x{prompt}", "")
    assert fields["Model"] == name
    assert fields["Seed"] == "42"


@pytest.mark.parametrize(
    ("sampler", "fields"),
    [
        ("euler-ancestral:8", {"Steps": "8", "Sampler": "Euler a"}),
        ("lcm:4", {"Steps": "4", "Sampler": "LCM"}),
        ("sde-dpmsolver++-karras:9", {"Steps": "9", "Sampler": "DPM++ 2M SDE", "Schedule type": "Karras"}),
        ("olss:3", {"Steps": "3", "Sampler": "olss"}),
    ],
)
def test_samplers_have_the_names_that_are_known_there(sampler: str, fields: dict[str, str]) -> None:
    assert sampler_fields(sampler) == fields


def test_letters_beyond_latin_survive(picture: Image.Image) -> None:
    image = saved(picture, replace(FACTS, prompt="ein Haus für Łódź 家"))
    assert image.text["parameters"].startswith("ein Haus für Łódź 家")  # type: ignore[attr-defined]


@pytest.mark.parametrize(("edited", "kind"), [(False, "trainedAlgorithmicMedia"), (True, "compositeWithTrainedAlgorithmicMedia")])
def test_the_mark_says_what_made_it(picture: Image.Image, edited: bool, kind: str) -> None:
    image = saved(picture, replace(FACTS, edited=edited), mark=True)
    tree = ElementTree.fromstring(image.text["XML:com.adobe.xmp"].lstrip("\ufeff"))  # type: ignore[attr-defined]
    (description,) = tree.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    said = description.attrib["{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"]
    assert said == f"http://cv.iptc.org/newscodes/digitalsourcetype/{kind}"


def test_nothing_is_said_where_nothing_is_asked_for(picture: Image.Image) -> None:
    data = encode_png(picture, FACTS, PngOptions(parameters=False))
    assert b"tEXt" not in data
    assert b"iTXt" not in data
    assert b"red house" not in data
    assert encode_png(picture, FACTS, PngOptions()) == encode_png(picture, FACTS, PngOptions())
