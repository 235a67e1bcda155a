"""The process that makes full precision's pictures for `quad studio --against`: framed requests in, framed pictures out."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from quad.core.errors import QuadError, UnsupportedError, UsageError, mismatch
from quad.evaluate.compare import adapter_files, check_parents
from quad.evaluate.figures.reference import PictureRequest, Reference
from quad.model.base.hub import resolve_model
from quad.runtime.adapter_defaults import sampler_text
from quad.runtime.adapter_switch import AdapterSwitch
from quad.runtime.bundle import Bundle, open_bundle
from quad.runtime.conditioning.condition import DEFAULT_GROW_PX
from quad.runtime.provenance.png import plain_png
from quad.runtime.request import Request, Resolved
from quad.serve.api import ErrorBody, NewRequest, error_body
from quad.serve.studio.reference_process import ReferenceAnswer, ReferencePicture
from quad.serve.worker_stream import LENGTH, framed, read_exactly, write_all
from quad.zoo.reference import MODELS, reference_dir


@dataclass(frozen=True, kw_only=True)
class FullPrecision:
    """A bundle's model in float32, called as the bundle is."""

    bundle: Bundle
    reference: Reference
    switch: AdapterSwitch

    @classmethod
    def open(cls, root: Path, model: Path, adapters: Mapping[str, Path], vae: Path | None = None) -> FullPrecision:
        """Open the model that a bundle was built from.

        Raises:
            InputError: no bundle, no model, or no file of an adapter. CompatibilityError: the model or an adapter is another one.
        """
        bundle = open_bundle(root)
        files = adapter_files(bundle, model, adapters)
        reference = Reference(model, files, bundle.manifest.text.skipped_layers + 1, vae=vae)
        check_parents(bundle, model, reference.digest_as(bundle.manifest.parents.get("base", "none")), files)
        return cls(bundle=bundle, reference=reference, switch=AdapterSwitch(bundle, {}))

    def picture(self, body: NewRequest) -> ReferencePicture:
        """The picture that a request asks for.

        Raises:
            UsageError: as a call of the pipeline. UnsupportedError: it says something that this side does not read.
        """
        start = time.perf_counter()
        resolved = self.switch.resolve(_request(body))
        self._check(body, resolved)
        request = PictureRequest(prompt=body.prompt, seed=body.seed, image=_pixels(body.image, "RGB"), mask=_pixels(body.mask_image, "L"))
        made = self.reference.pictures(resolved.task, [request], resolved.spec, list(resolved.weights))[0]
        return ReferencePicture(
            image=plain_png(Image.fromarray(made)),
            seconds=time.perf_counter() - start,
            sampler=sampler_text(resolved.spec.sampler),
            guidance=resolved.spec.guidance,
            adapters=dict.fromkeys(resolved.weights, 1.0),
            seed=body.seed,
        )

    def _check(self, body: NewRequest, resolved: Resolved) -> None:
        foreign = [name for name in resolved.weights if name not in self.bundle.manifest.adapters]
        spec = resolved.spec
        for is_there, expected, actual in (
            (bool(foreign), "adapters of the bundle", ", ".join(foreign)),
            (any(weight != 1.0 for weight in resolved.weights.values()), "adapters of weight 1", str(resolved.weights)),
            (bool(body.negative_prompt), "no negative prompt", "one"),
            (spec.strength is not msgspec.UNSET or bool(spec.blend), "a task that begins at noise", resolved.task),
            (not body.sizes.is_default, "the picture's own sizes", "others"),
            (body.guidance_interval is not None, "guidance all the way", str(body.guidance_interval)),
            (body.reuse > 1, "every step computed", f"reuse {body.reuse}"),
            (body.tiny_decoder, "the model's own decoder", "the tiny one"),
            (body.mask_grow != DEFAULT_GROW_PX, f"a mask grown by {DEFAULT_GROW_PX}", str(body.mask_grow)),
            (spec.image_guidance is not msgspec.UNSET, "a task without picture guidance", resolved.task),
            (resolved.size not in (None, self.reference.picture_size), f"pictures of {self.reference.picture_size}", str(resolved.size)),
        ):
            if is_there:
                raise UnsupportedError(mismatch("full precision", expected, actual, "change it to compare"))


def _request(body: NewRequest) -> Request:
    return Request(
        prompt=body.prompt,
        task=body.task,
        adapters=body.adapters,
        num_inference_steps=body.num_inference_steps,
        sampler=body.sampler,
        guidance_scale=body.guidance_scale,
        strength=body.strength,
        image_guidance_scale=body.image_guidance_scale,
        seed=body.seed,
        width=body.width,
        height=body.height,
    )


def _pixels(png: bytes | None, mode: str) -> NDArray[np.uint8] | None:
    if png is None:
        return None
    with Image.open(BytesIO(png), formats=("PNG",)) as picture:
        return np.asarray(picture.convert(mode))


def answer(opened: FullPrecision | ErrorBody, data: bytes) -> ReferenceAnswer:
    """The answer to a request; an error of the user's or the model's ends no process."""
    if isinstance(opened, ErrorBody):
        return ReferenceAnswer(error=opened)
    try:
        return ReferenceAnswer(opened.picture(msgspec.json.decode(data, type=NewRequest)))
    except QuadError as error:
        return ReferenceAnswer(error=error_body(error))


def _opened(words: argparse.Namespace) -> FullPrecision | ErrorBody:
    try:
        model = reference_dir(words.model) if words.model in MODELS else resolve_model(words.model)
        return FullPrecision.open(words.bundle, model, _named(words.adapter), words.vae)
    except QuadError as error:
        return error_body(error)


def _named(words: Sequence[str]) -> dict[str, Path]:
    if wrong := [word for word in words if "=" not in word]:
        raise UsageError(mismatch("--adapter", "NAME=PATH", wrong[0], "write ink=ink.safetensors"))
    return {name: Path(file) for name, _, file in (word.partition("=") for word in words)}


def main(words: Sequence[str] | None = None) -> None:
    """Answer requests until the stream ends."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("model")
    parser.add_argument("--adapter", action="append", default=[], help="NAME=FILE")
    parser.add_argument("--vae", type=Path)
    options = parser.parse_args(words)
    os.nice(5)  # whoever waits for a picture of the bundle goes first
    opened = _opened(options)
    while length := read_exactly(LENGTH.size):
        data = read_exactly(*LENGTH.unpack(length))
        write_all(framed(msgspec.json.encode(answer(opened, data))))


if __name__ == "__main__":
    main()
