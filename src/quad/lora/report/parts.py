"""A LoRA file for one base, part by part: what each model of the base gets of it, and how well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from quad.core.slots import TEXT_ENCODER, UNET
from quad.lora.adapter import FloatAdapter
from quad.lora.layout import TEXT_PREFIX
from quad.lora.report.notes import module_error

_LEAST = 5e-6  # an error of rounding alone
PART_NAMES = {UNET: "U-Net", TEXT_ENCODER: "text encoder"}


@dataclass(frozen=True, kw_only=True)
class AdapterPart:
    """The share of one model.

    Args:
        modules: layers that are changed.
        layers: Linear and Conv2d layers of the model.
        tensors: of the file, that are used.
        kinds: kind of adapter -> modules.
        ranks, file_ranks: smallest and largest, as applied and as in the file; 0 where the file does not tell.
        alphas: smallest and largest that count; None where nothing says any.
        error: of the change of weights by conversion, relative, all modules together.
        worst_error, worst: the same of one module, and which; 0 and "" where all are as in the file.
    """

    modules: int
    layers: int
    tensors: int
    kinds: dict[str, int]
    ranks: tuple[int, int]
    file_ranks: tuple[int, int]
    alphas: tuple[float, float] | None
    error: float
    worst_error: float
    worst: str

    def to_json(self) -> dict[str, object]:
        """Fields of `parts` in `quad inspect --base --json`."""
        return asdict(self)

    def line(self, component: str) -> str:
        """For people."""
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.kinds.items())
        rank = f"rank {_span(*self.ranks)}" + ("" if self.ranks == self.file_ranks else f" ({_span(*self.file_ranks)} in the file)")
        alpha = "no alpha" if self.alphas is None else f"alpha {_span(*self.alphas)}"
        loss = f"off by {self.error:.2%}, {self.worst_error:.2%} at worst ({self.worst})" if self.worst_error > _LEAST else "as in the file"
        return f"{PART_NAMES[component]}: {self.modules} of {self.layers} layers, {kinds}, {rank}, {alpha}, change of weights {loss}"


def parts_of(adapter: FloatAdapter, unet: Iterable[str], text_encoder: Iterable[str]) -> dict[str, AdapterPart]:
    """The share of each model that gets anything of an adapter: component -> part.

    Args:
        unet, text_encoder: paths of the models' layers.
    """
    layers = {UNET: list(unet), TEXT_ENCODER: list(text_encoder)}
    paths = {
        component: [path for path in adapter.weights if path.startswith(TEXT_PREFIX) == (component == TEXT_ENCODER)] for component in layers
    }
    return {component: _part(adapter.only(of_part), len(layers[component])) for component, of_part in paths.items() if of_part}


def _part(adapter: FloatAdapter, layers: int) -> AdapterPart:
    origins = adapter.origins.values()
    ranks, file_ranks = [pair.rank for pair in adapter.weights.values()], [origin.rank for origin in origins]
    alphas = [origin.alpha for origin in origins if origin.alpha is not None]
    worst = min(adapter.energy, key=lambda path: adapter.energy[path], default="")
    return AdapterPart(
        modules=len(adapter.weights),
        layers=layers,
        tensors=sum(origin.tensors for origin in origins),
        kinds=dict(Counter(origin.kind for origin in origins)),
        ranks=(min(ranks), max(ranks)),
        file_ranks=(min(file_ranks), max(file_ranks)),
        alphas=(min(alphas), max(alphas)) if alphas else None,
        error=adapter.error,
        worst_error=module_error(adapter.energy[worst]) if worst else 0.0,
        worst=worst,
    )


def _span(least: float, most: float) -> str:
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"
