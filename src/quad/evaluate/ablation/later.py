"""Later adapters on a row's bundle: each at several strengths is admitted or refused, and what it does compared with full precision.

A strength is a factor of the file's update, so the file is another adapter and admission judges it as one; a DoRA's norms leave its file no
such factor, so it is admitted as it is and runs with that weight. The calls are those of the model's own tasks: what an adapter changes
in them is well defined, whatever it was trained for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

import msgspec
import numpy as np
from numpy.typing import NDArray

from quad.admit.request import AdaptRequest, AdaptResult
from quad.align.adapt import adapt
from quad.core.decibels import sqnr_db
from quad.core.errors import CompatibilityError, InputError, UnsupportedError
from quad.core.manifest import TOKENIZER_FILE
from quad.core.slots import TEXT_ENCODER, UNET
from quad.evaluate.ablation.later_truth import LaterCall, LaterTruth, TrueOutputs, copy_name
from quad.evaluate.ablation.results import LaterFigures, LaterTable
from quad.evaluate.figures.effect import Effect, effect_of, open_graph, unet_output
from quad.evaluate.figures.metrics import PSNR_CAP_DB
from quad.runtime.adapters.buffers import Buffers
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import Bundle
from quad.runtime.conditioning.prompt_chunks import read_prompt
from quad.runtime.conditioning.text_features import text_features
from quad.runtime.conditioning.tokenizer import Tokenizer
from quad.runtime.engines.engine import Session
from quad.zoo.calibration import calibration_samples

STRENGTHS = (0.5, 1.0, 2.0, 4.0)
Array = NDArray[Any]


@final
class LaterAdapters:
    """Later adapters at each strength, and their true outputs, made once for all rows."""

    def __init__(self, model: Path, files: Mapping[str, Path], *, calls: Callable[[], Sequence[LaterCall]], directory: Path) -> None:
        """Args:
        files: name -> LoRA file.
        calls: gives the calls that outputs are compared on.
        directory: gets a copy of each adapter at each strength.
        """
        self._model, self._files, self._make_calls, self._directory = model, files, calls, directory

    def measure(self, bundle: Bundle, engine: str) -> LaterTable:
        """Adapter -> strength as text -> its figures on a bundle."""
        graphs = _Graphs(bundle, engine)
        return {name: {f"{strength:g}": self._figures(graphs, name, strength) for strength in STRENGTHS} for name in self._files}

    def _figures(self, graphs: _Graphs, name: str, strength: float) -> LaterFigures:
        truth, copy = self._truth, copy_name(name, strength)
        try:
            admitted = graphs.admitted(self._request(graphs, name, truth.files[copy]))
        except (CompatibilityError, InputError, UnsupportedError) as error:
            return LaterFigures(admitted=False, reason=str(error))
        reads_text = truth.reaches_text(name)
        full = graphs.outputs(truth.calls, {admitted.pack: truth.weights[copy]}, reads_text)
        zero = graphs.outputs(truth.calls, {}, reads_text)
        return _with_admission(figures_of(truth.outputs(copy), full, zero), admitted)

    def _request(self, graphs: _Graphs, name: str, file: Path) -> AdaptRequest:
        output = self._directory / f"{file.parent.name}.qpack"
        request = AdaptRequest(bundle=graphs.bundle.root, name="later", adapter=file, output=output, engine=graphs.engine)
        if not self._truth.needs_base(name):
            return request
        return replace(request, base=self._model, samples=calibration_samples(self._model, ()), distill_steps=0)

    @cached_property
    def _truth(self) -> LaterTruth:
        return LaterTruth(self._model, self._files, strengths=STRENGTHS, calls=self._make_calls(), directory=self._directory)


class _Graphs:
    """A bundle's U-Net and text encoder, opened once; answers without an adapter are remembered."""

    def __init__(self, bundle: Bundle, engine: str) -> None:
        self.bundle, self.engine = bundle, engine
        self._unet = open_graph(bundle, engine, UNET)
        self._zero: dict[bool, list[Array]] = {}
        self._admitted: dict[Path, AdaptResult] = {}

    def admitted(self, request: AdaptRequest) -> AdaptResult:
        """The admission of a file, made once.

        Raises:
            CompatibilityError, InputError, UnsupportedError: it is refused.
        """
        if request.adapter not in self._admitted:
            self._admitted[request.adapter] = adapt(request)
        return self._admitted[request.adapter]

    def outputs(self, calls: Sequence[LaterCall], weights: Mapping[Path, float], reads_text: bool) -> list[Array]:
        """The U-Net's answers with an adapter, or with none.

        Args:
            weights: pack -> weight.
            reads_text: the words are those of the bundle's text encoder with that adapter, not the calls' own.
        """
        if not weights and reads_text in self._zero:
            return self._zero[reads_text]
        store = AdapterStore(self.bundle)
        buffers = store.mix([store.register(pack) for pack in weights], list(weights.values()))[0]
        answers = [unet_output(self._unet, buffers, self._with_words(call, buffers) if reads_text else call.probe) for call in calls]
        if not weights:
            self._zero[reads_text] = answers
        return answers

    def _with_words(self, call: LaterCall, buffers: Buffers) -> Any:
        encoder, tokenizer = self._encoder, self._tokenizer
        encoder.bind({name: buffer for name, buffer in buffers.items() if name in encoder.inputs})
        words = [text_features(encoder, read_prompt(tokenizer, prompt), tokenizer.text) for prompt in call.prompts]
        return replace(call.probe, inputs={**call.probe.inputs, "encoder_hidden_states": np.concatenate(words)})

    @cached_property
    def _encoder(self) -> Session:
        return open_graph(self.bundle, self.engine, TEXT_ENCODER)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer(self.bundle.read(TOKENIZER_FILE), self.bundle.manifest.text)


def figures_of(true: TrueOutputs, full: Sequence[Array], zero: Sequence[Array]) -> LaterFigures:
    """The figures of an admitted adapter, pooled over all calls.

    Args:
        full, zero: the bundle's outputs with the adapter and with none, one for each of `true`'s.
    """
    signal = sum(float(np.square(output, dtype=np.float64).sum()) for output in true.full)
    noise = sum(float(np.square(a - b, dtype=np.float64).sum()) for a, b in zip(full, true.full, strict=True))
    effect = effect_of(_differences(true.full, true.zero), _differences(full, zero)) or Effect(1.0, PSNR_CAP_DB)
    return LaterFigures(admitted=True, output_db=sqnr_db(signal, noise), effect_gain=effect.gain, effect_sqnr_db=effect.capped_db)


def _with_admission(figures: LaterFigures, admitted: AdaptResult) -> LaterFigures:
    """The figures with what the admission says: what is kept of the update, what is cut off of activations, and the room above."""
    quality, headroom = admitted.manifest.quality, admitted.manifest.headroom
    lost = msgspec.UNSET if quality is msgspec.UNSET else quality.lost
    return msgspec.structs.replace(
        figures,
        applied=admitted.applied,
        lost=None if lost is msgspec.UNSET else lost,
        headroom=None if headroom is msgspec.UNSET else headroom,
    )


def _differences(full: Sequence[Array], zero: Sequence[Array]) -> list[Array]:
    return [a - b for a, b in zip(full, zero, strict=True)]
