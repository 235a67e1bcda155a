"""The adapter in the bundle's numbers: rescaled to the frozen encodings, and where the base model is at hand by that (`quad.align`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from quad.admit.request import AdaptRequest
from quad.admit.slots import Fitted
from quad.core.component_call import Inputs
from quad.core.manifest import AdapterQuality, TaskSpec
from quad.core.slots import UNET
from quad.lora.fit.integers import quantize_adapter
from quad.lora.fit.slot_inputs import slot_inputs
from quad.lora.read import FloatAdapter, RankLimits
from quad.runtime.adapters.buffers import Buffers, whole_buffers
from quad.runtime.adapters.file import bundle_zeros
from quad.runtime.bundle import Bundle
from quad.runtime.engines.engine import Engine, Session
from quad.runtime.fixed_threads import ENGINE_THREADS


@dataclass(frozen=True, kw_only=True)
class Admission:
    """One admission, opened.

    Args:
        tasks: the adapter's task and how it runs; empty for an adapter that has none.
        base: the model that the bundle was built from, where it is at hand.
        engine: that runs the bundle's U-Net.
    """

    request: AdaptRequest
    bundle: Bundle
    tasks: Mapping[str, TaskSpec]
    base: BaseModel | None
    engine: Engine

    def load_unet(self) -> Session:
        """The bundle's U-Net, loaded; it is in memory for as long as the session lives.

        Raises:
            BackendError: the engine cannot load it. VerificationError: the bundle was changed.
        """
        with self.bundle.graph_to_load(UNET) as file:
            return self.engine.load(file, ENGINE_THREADS)


@dataclass(frozen=True, kw_only=True)
class AlignedAdapter:
    """The adapter in the bundle's numbers, and how it got there; with the base, how near its own graph comes to float.

    Args:
        alignment: of its training, see `quad.quantize.distill.distill.Alignment.to_json`.
        measured: its quality against float, on so many calls.
        own_calls: a few of them, each of one picture, for activations to be observed on.
        trained: it is no longer the product that was fitted to the slots.
    """

    buffers: Buffers
    alignment: Mapping[str, Any] = field(default_factory=dict)
    measured: AdapterQuality | None = None
    measured_calls: int = 0
    own_calls: Sequence[Inputs] = ()
    trained: bool = False
    notes: tuple[str, ...] = ()


class BaseModel(Protocol):
    """The model that a bundle was built from, and all that an admission asks of it.

    A Protocol because the rooms that open models stand above: a device has none.
    """

    def read(self, request: AdaptRequest, limits: RankLimits) -> FloatAdapter:
        """The LoRA by the model's own layers.

        Raises:
            InputError, UnsupportedError: as `quad.lora.read.read_lora`.
        """
        ...

    def align(self, admission: Admission, adapter: FloatAdapter, fitted: Fitted) -> AlignedAdapter:
        """Rescaled or trained, whichever comes nearer to float by the bundle's own graph.

        Args:
            adapter: as it was trained.
            fitted: as it was brought to the slots.

        Raises:
            CompatibilityError: the adapter's effect does not come through. InputError: there is no sample of its task.
        """
        ...


OpenBase = Callable[[Bundle], BaseModel]


def rescale(bundle: Bundle, fitted: Fitted) -> AlignedAdapter:
    """Rescaled to the frozen encodings, or normalised; in a float bundle as it is."""
    if bundle.profile.has_float_slots:
        inputs: Mapping[str, NDArray[Any]] = slot_inputs(fitted.adapter, bundle.slots)
    else:
        inputs = quantize_adapter(fitted.adapter, bundle.slots, bundle.profile)
    return AlignedAdapter(buffers=whole_buffers(inputs, bundle_zeros(bundle)))
