"""Later adapters on a row's bundle: each at several strengths is admitted or refused, and what it does compared with diffusers and PEFT.

A strength is a factor of every up-projection, so the file is another adapter and admission judges it as one. The calls are those of the
model's own tasks: what an adapter changes in them is well defined, whatever it was trained for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from quad.admit.request import AdaptRequest
from quad.align.adapt import adapt
from quad.core.decibels import sqnr_db
from quad.core.errors import CompatibilityError, UnsupportedError
from quad.evaluate.ablation.results import LaterFigures, LaterTable
from quad.evaluate.figures.effect import Effect, effect_of, open_unet, unet_output
from quad.evaluate.figures.metrics import PSNR_CAP_DB
from quad.evaluate.figures.reference import Reference
from quad.lora.file import find_lora
from quad.quantize.observe.probes import Probe
from quad.runtime.adapters.store import AdapterStore
from quad.runtime.bundle import Bundle
from quad.zoo.synthetic_adapter import write_amplified

STRENGTHS = (0.5, 1.0, 2.0, 4.0)
Array = NDArray[Any]


@dataclass(frozen=True)
class TrueOutputs:
    """The float network's outputs `(B, 4, h, w)` on all calls, with an adapter and with none."""

    full: Sequence[Array]
    zero: Sequence[Array]


@final
class LaterAdapters:
    """Later adapters at each strength, and their true outputs, made once for all rows."""

    def __init__(self, model: Path, files: Mapping[str, Path], *, probes: Callable[[], Sequence[Probe]], directory: Path) -> None:
        """Args:
        files: name -> LoRA file.
        probes: gives the calls that outputs are compared on.
        directory: gets a copy of each adapter at each strength.
        """
        self._model, self._files, self._make_probes, self._directory = model, files, probes, directory

    def measure(self, bundle: Bundle, engine: str) -> LaterTable:
        """Adapter -> strength as text -> its figures on a bundle."""
        session = open_unet(bundle, engine)
        zero = self._outputs(bundle, session, None)
        later: LaterTable = {}
        for name in self._files:
            for strength in STRENGTHS:
                try:
                    pack = self._admit(bundle, engine, name, strength)
                except (CompatibilityError, UnsupportedError) as error:
                    figures = LaterFigures(admitted=False, reason=str(error))
                else:
                    full = self._outputs(bundle, session, pack)
                    figures = figures_of(self._true[self._copy(name, strength)], full, zero)
                later.setdefault(name, {})[f"{strength:g}"] = figures
        return later

    @cached_property
    def _probes(self) -> Sequence[Probe]:
        return self._make_probes()

    def _copy(self, name: str, strength: float) -> str:
        return f"{name}-{strength:g}"

    def _admit(self, bundle: Bundle, engine: str, name: str, strength: float) -> Path:
        """The pack of one admission.

        Raises:
            CompatibilityError, UnsupportedError: it is refused.
        """
        copy = self._copy(name, strength)
        pack = self._directory / f"{copy}.qpack"
        adapt(AdaptRequest(bundle=bundle.root, name="later", adapter=self._copies[copy], output=pack, engine=engine))
        return pack

    def _outputs(self, bundle: Bundle, session: Any, pack: Path | None) -> list[Array]:
        store = AdapterStore(bundle)
        names = [] if pack is None else [store.register(pack)]
        buffers = store.mix(names, [1.0] * len(names))[0]
        return [unet_output(session, buffers, probe) for probe in self._probes]

    @cached_property
    def _copies(self) -> dict[str, Path]:
        """Name and strength -> the file of the adapter at that strength."""
        copies = {}
        for name, file in self._files.items():
            for strength in STRENGTHS:
                copy = self._copy(name, strength)
                write_amplified(file, self._directory / copy, strength)
                copies[copy] = find_lora(self._directory / copy)
        return copies

    @cached_property
    def _true(self) -> dict[str, TrueOutputs]:
        reference = Reference(self._model, self._copies)

        def outputs(adapter: str | None) -> list[Array]:
            calls = (probe.tensors() for probe in self._probes)
            return [
                reference.network_output(adapter, sample, probe.timestep, words).numpy()
                for probe, (sample, _, words) in zip(self._probes, calls, strict=True)
            ]

        zero = outputs(None)
        return {copy: TrueOutputs(outputs(copy), zero) for copy in self._copies}


def figures_of(true: TrueOutputs, full: Sequence[Array], zero: Sequence[Array]) -> LaterFigures:
    """The figures of an admitted adapter, pooled over all calls.

    Args:
        full, zero: the bundle's outputs with the adapter and with none, one for each of `true`'s.
    """
    signal = sum(float(np.square(output, dtype=np.float64).sum()) for output in true.full)
    noise = sum(float(np.square(a - b, dtype=np.float64).sum()) for a, b in zip(full, true.full, strict=True))
    effect = effect_of(_differences(true.full, true.zero), _differences(full, zero)) or Effect(1.0, PSNR_CAP_DB)
    return LaterFigures(admitted=True, output_db=sqnr_db(signal, noise), effect_gain=effect.gain, effect_sqnr_db=effect.capped_db)


def _differences(full: Sequence[Array], zero: Sequence[Array]) -> list[Array]:
    return [a - b for a, b in zip(full, zero, strict=True)]
