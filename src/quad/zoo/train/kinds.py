"""Stage `kinds`: small adapters of the kinds that `later` has none of, on its pictures, each trained as what it is.

An adapter is a parametrization of the weights that it changes, `W + D`; D is made of the tensors that its file has under LyCORIS' names.
Sources: Hu 2021 (LoRA); Hyeon-Woo 2021 (LoHa); Yeh 2023 (LyCORIS: LoKr, the Tucker form, full differences).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils import parametrize

from quad.core.slots import TEXT_ENCODER
from quad.core.storage.files import write_bytes
from quad.zoo.reference import ADAPTER_FILE
from quad.zoo.train.adapters import ATTENTION, FEED_FORWARD, TaskData, adapter_loss
from quad.zoo.train.frozen import Frozen
from quad.zoo.train.loop import Plan, run_stage

WORDS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")  # of the text encoder
READS_TEXT = ("attn2.to_k", "attn2.to_v")
LOKR_SIDE = 4
BATCH = 16
Named = dict[str, Tensor]


class Delta(nn.Module):
    """The difference that is added to a weight; its parameters are the tensors of the file."""

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight."""
        return weight + self.delta().reshape(weight.shape)

    def delta(self) -> Tensor:
        """The difference, as a matrix or of the weight's own shape."""
        raise NotImplementedError

    def named(self) -> Named:
        """The end of each key, and its tensor."""
        return {name: value.detach() for name, value in self.named_parameters()}


class Lora(Delta):
    """`B A`; of a kernel in Tucker's form, `B (mid, down)`."""

    def __init__(self, weight: Tensor, rank: int, alpha: float, *, tucker: bool = False) -> None:
        super().__init__()
        outputs, inputs, *kernel = weight.shape
        self.scale, self.alpha, ones = alpha / rank, alpha, (1,) * len(kernel)
        self.down = nn.Parameter(torch.randn(rank, inputs, *(ones if tucker else kernel)) / weight[0].numel() ** 0.5)
        self.mid = nn.Parameter(torch.randn(rank, rank, *kernel) / rank**0.5) if tucker else None
        self.up = nn.Parameter(torch.zeros(outputs, rank, *ones))

    def delta(self) -> Tensor:
        """See `Delta.delta`."""
        a = self.down if self.mid is None else torch.einsum("ijkl,jc->ickl", self.mid, self.down.flatten(1))
        return self.scale * self.up.flatten(1) @ a.flatten(1)

    def named(self) -> Named:
        """See `Delta.named`."""
        return {f"lora_{name}.weight": value for name, value in super().named().items()} | {"alpha": torch.tensor(self.alpha)}


class LoHa(Delta):
    """`(w1_a w1_b) * (w2_a w2_b)`, entry by entry."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        outputs, inputs = weight.flatten(1).shape
        self.scale, self.alpha = alpha / rank, alpha
        self.hada_w1_a = nn.Parameter(0.1 * torch.randn(outputs, rank))
        self.hada_w1_b = nn.Parameter(torch.randn(rank, inputs) / inputs**0.5)
        self.hada_w2_a = nn.Parameter(torch.zeros(outputs, rank))
        self.hada_w2_b = nn.Parameter(torch.randn(rank, inputs))

    def delta(self) -> Tensor:
        """See `Delta.delta`."""
        return self.scale * (self.hada_w1_a @ self.hada_w1_b) * (self.hada_w2_a @ self.hada_w2_b)

    def named(self) -> Named:
        """See `Delta.named`."""
        return super().named() | {"alpha": torch.tensor(self.alpha)}


class LoKr(Delta):
    """`kron(w1, w2_a w2_b)`, `w1` small and written out."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        outputs, inputs, *kernel = weight.shape
        columns = inputs // LOKR_SIDE * weight[0, 0].numel()
        self.scale, self.alpha = alpha / rank, alpha
        self.lokr_w1 = nn.Parameter(torch.randn(LOKR_SIDE, LOKR_SIDE) / LOKR_SIDE)
        self.lokr_w2_a = nn.Parameter(torch.zeros(outputs // LOKR_SIDE, rank))
        self.lokr_w2_b = nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self._kernel = kernel

    def delta(self) -> Tensor:
        """See `Delta.delta`."""
        return self.scale * torch.kron(self.lokr_w1, self.lokr_w2_a @ self.lokr_w2_b)

    def named(self) -> Named:
        """See `Delta.named`."""
        return super().named() | {"alpha": torch.tensor(self.alpha)}


class Full(Delta):
    """The difference itself; rank and alpha mean nothing to it."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.diff = nn.Parameter(torch.zeros_like(weight))

    def delta(self) -> Tensor:
        """See `Delta.delta`."""
        return self.diff


def tucker(weight: Tensor, rank: int, alpha: float) -> Lora:
    """LoRA, of a kernel in Tucker's form."""
    return Lora(weight, rank, alpha, tucker=weight.ndim == 4 and weight.shape[-1] > 1)


@dataclass(frozen=True, kw_only=True)
class KindRecipe:
    """One adapter.

    Args:
        task: whose pictures and words it learns.
        kind: makes the difference of a weight, from its rank and alpha.
        targets, words: endings of the U-Net's layers, and of the text encoder's.
        rate: learning rate.
    """

    task: str
    kind: Callable[[Tensor, int, float], Delta]
    rank: int = 4
    alpha: float = 4.0
    targets: tuple[str, ...] = ATTENTION
    words: tuple[str, ...] = ()
    rate: float = 2e-3
    batches: int = 120


KIND_RECIPES: dict[str, KindRecipe] = {
    "pastel-loha": KindRecipe(task="pastel", kind=LoHa, alpha=2.0, targets=(*ATTENTION, *FEED_FORWARD)),
    "golden-lokr": KindRecipe(task="golden", kind=LoKr, targets=(*ATTENTION, "conv1", "conv2")),
    "pastel-tucker": KindRecipe(task="pastel", kind=tucker, rank=12, alpha=6.0, targets=("conv1", "conv2", "to_out.0")),
    "golden-full": KindRecipe(task="golden", kind=Full, targets=(*READS_TEXT, "conv_out"), rate=1e-3),
    "golden-words": KindRecipe(task="golden", kind=Lora, rank=8, alpha=2.0, words=WORDS),
    "winter-words": KindRecipe(task="winter", kind=Lora, rank=8, words=WORDS),
}


def attach(network: nn.Module, recipe: KindRecipe, endings: tuple[str, ...]) -> dict[str, Delta]:
    """Layer -> what will be added to its weight, of all layers with such an ending, in the network's order."""
    deltas: dict[str, Delta] = {}
    for path, layer in list(network.named_modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d) and any(f".{path}".endswith(f".{ending}") for ending in endings):
            deltas[path] = recipe.kind(layer.weight.detach(), recipe.rank, recipe.alpha)
            parametrize.register_parametrization(layer, "weight", deltas[path])
    return deltas


def lycoris_names(prefix: str, deltas: Mapping[str, Delta]) -> Named:
    """The file's tensors in fp16."""
    return {
        f"{prefix}_{path.replace('.', '_')}.{name}": value.half().contiguous()
        for path, delta in deltas.items()
        for name, value in delta.named().items()
    }


def train_kind(name: str, run: tuple[Path, Path], model: Frozen, data: TaskData) -> None:
    """Train one adapter and write it; `run` is where checkpoints go and the directory of the file."""
    (out, target), recipe = run, KIND_RECIPES[name]
    unet, text = model.unet, model.texts[TEXT_ENCODER]
    unet.requires_grad_(False)
    torch.manual_seed(list(KIND_RECIPES).index(name))
    deltas, words = attach(unet, recipe, recipe.targets), attach(text, recipe, recipe.words)
    plan = Plan(
        name=f"kind-{name}",
        out=out,
        steps=recipe.batches,
        batch=BATCH,
        lr=recipe.rate,
        warmup=20,
        ema=0.98,
        weight_decay=0.0,
        save_every=60,
    )
    run_stage(plan, [unet, text], adapter_loss(unet, model.words, data, batch=BATCH, steps=8, changed_weight=2.0))
    write_bytes(target / ADAPTER_FILE, save(lycoris_names("lora_unet", deltas) | lycoris_names("lora_te_text_model", words)))
