"""Outputs of later adapters in full precision, at each strength: by diffusers and PEFT where they load it, else by the kind's formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, final

from numpy.typing import NDArray

from quad.evaluate.figures.quality import held_out
from quad.evaluate.figures.reference import Reference
from quad.lora.adapter import FloatAdapter
from quad.lora.kinds import WITH_DORA
from quad.lora.layout import TEXT_PREFIX
from quad.lora.low_rank import WHOLE
from quad.model.adapters import read_adapter
from quad.model.base.open import open_model
from quad.quantize.observe.probes import Probe
from quad.zoo.synthetic_adapter import write_amplified

_BY_DIFFUSERS = ("LoRA", "LoRA" + WITH_DORA)
Array = NDArray[Any]


@dataclass(frozen=True)
class LaterCall:
    """A call of the U-Net, and the prompts whose words it reads, one for each row of its batch."""

    probe: Probe
    prompts: Sequence[str]


@dataclass(frozen=True)
class TrueOutputs:
    """The float network's outputs `(B, 4, h, w)` on all calls, with an adapter and with none."""

    full: Sequence[Array]
    zero: Sequence[Array]


def call_of(probe: Probe) -> LaterCall:
    """The call of a probe along a run of a held-out sample; a guided one reads no words first."""
    prompt = held_out(probe.task, probe.run + 1)[probe.run].prompt
    return LaterCall(probe, ("", prompt)[-len(probe.inputs["encoder_hidden_states"]) :])


@final
class LaterTruth:
    """Later adapters as full precision has them."""

    def __init__(
        self, model: Path, files: Mapping[str, Path], *, strengths: Sequence[float], calls: Sequence[LaterCall], directory: Path
    ) -> None:
        """Args:
        files: name -> LoRA file.
        directory: gets a copy of each adapter at each strength; of a DoRA one copy, whose update is weighted when it runs.
        """
        base = open_model(model)
        self._adapters: dict[str, FloatAdapter] = {
            name: read_adapter(name, file, base.unet, text_encoder=base.text_encoder, limits=WHOLE) for name, file in files.items()
        }
        self.calls, self._model = calls, model
        self._by_copy: dict[str, str] = {}
        self.weights: dict[str, float] = {}
        self.files: dict[str, Path] = {}
        for name, strength in product(files, strengths):
            copy = copy_name(name, strength)
            weight = strength if self.needs_base(name) else 1.0
            self._by_copy[copy], self.weights[copy] = name, weight
            self.files[copy] = write_amplified(files[name], directory / copy_name(name, strength / weight), strength / weight)
        self._known: dict[str, TrueOutputs] = {}

    def needs_base(self, name: str) -> bool:
        """Whether the adapter is a DoRA in some layer."""
        return any(origin.kind.endswith(WITH_DORA) for origin in self._adapters[name].origins.values())

    def reaches_text(self, name: str) -> bool:
        """Whether the adapter changes the text encoder."""
        return any(path.startswith(TEXT_PREFIX) for path in self._adapters[name].weights)

    def outputs(self, copy: str) -> TrueOutputs:
        """Of an adapter at one strength, by the name of that copy."""
        if copy not in self._known:
            self._known[copy] = TrueOutputs(self._outputs(copy), self._zero)
        return self._known[copy]

    @cached_property
    def _zero(self) -> list[Array]:
        return self._outputs(None)

    @cached_property
    def _reference(self) -> Reference:
        loaded = {
            copy: self.files[copy]
            for copy, name in self._by_copy.items()
            if _is_by_diffusers(self._adapters[name]) and self.weights[copy] == 1.0
        }
        merged = {copy: file for copy, file in self.files.items() if copy not in loaded}
        return Reference(self._model, loaded, merged=merged, merged_weights=self.weights)

    def _outputs(self, copy: str | None) -> list[Array]:
        reads_text = copy is not None and self.reaches_text(self._by_copy[copy])
        outputs = []
        for call in self.calls:
            sample, _, words = call.probe.tensors()
            if reads_text:
                self._reference.use(*() if copy is None else (copy,))
                words = self._reference.words(call.prompts)
            outputs.append(self._reference.network_output(copy, sample, call.probe.timestep, words).numpy())
        return outputs


def copy_name(name: str, strength: float) -> str:
    """The name of an adapter's copy at a strength."""
    return f"{name}-{strength:g}"


def _is_by_diffusers(adapter: FloatAdapter) -> bool:
    """Whether diffusers loads it: pairs of matrices, with norms or without, of the U-Net alone."""
    of_unet = not any(path.startswith(TEXT_PREFIX) for path in adapter.weights)
    return of_unet and all(origin.kind in _BY_DIFFUSERS for origin in adapter.origins.values())
