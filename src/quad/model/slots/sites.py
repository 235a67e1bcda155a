"""Sites: the named places of a network where an activation may be observed, simulated as integers, or exported with a Q/DQ pair.

A Site is the identity until someone gives it a `transform`. While `exporting()`, it becomes the operator `quad::site`, which
the exporter turns into one node per name. Names are those of `quad.core.tensor_names`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from quad.core.tensor_names import attention_names, input_name, skip_input_name
from quad.model.slots.held_weight import add_step, convolution, linear

_EXPORTING: ContextVar[bool] = ContextVar("quad_exporting", default=False)


# Without `torch.library.custom_op`, whose wrapper takes a tenth of a trace: it runs only under `exporting()`, where there are no gradients.
_LIBRARY = torch.library.Library("quad", "DEF")
_LIBRARY.define("site(Tensor x, str name) -> Tensor")
_LIBRARY.impl("site", lambda x, name: x.clone(), "CompositeExplicitAutograd")  # an operator must not return its argument
_LIBRARY.impl("site", lambda x, name: torch.empty_like(x), "Meta")

SITE_OP = torch.ops.quad.site.default


@contextmanager
def exporting() -> Iterator[None]:
    """Inside the block every Site is the operator `quad::site`; transforms are left out."""
    token = _EXPORTING.set(True)
    try:
        yield
    finally:
        _EXPORTING.reset(token)


class Site(nn.Module):
    """A named place; the identity, or `transform`, or an operator while exporting.

    Args:
        name: tensor name in the profile, e.g. `conv_in.in`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.transform: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if _EXPORTING.get():
            exported: Tensor = SITE_OP(x, self.name)
            return exported
        return x if self.transform is None else self.transform(x)

    def extra_repr(self) -> str:
        return self.name


class SplitSite(nn.Module):
    """Two Sites on one convolution input: the decoder's channels come first, then those that a skip brought from the encoder.

    Their ranges differ widely, so each half has its own encoding: `<path>.in` and `<path>.in_skip`.

    Source: docs/method.md section 5, step 3.

    Args:
        path: of the convolution.
        channels: how many are the decoder's.
    """

    def __init__(self, path: str, channels: int) -> None:
        super().__init__()
        self.name, self.channels = input_name(path), channels
        self.decoder, self.skip = Site(self.name), Site(skip_input_name(path))

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, channels, height, width)`, as it came where neither half has a transform."""
        if not _EXPORTING.get() and self.decoder.transform is None and self.skip.transform is None:
            return x
        return torch.cat([self.decoder(x[:, : self.channels]), self.skip(x[:, self.channels :])], dim=1)


class SitedLinear(nn.Linear):
    """A Linear whose input passes the Site `<path>.in`; shares the parameters of the layer it stands for."""

    def __init__(self, layer: nn.Linear, path: str) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        add_step(self, layer)
        self.site = Site(input_name(path))
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        return linear(self, self.site(input))


class SitedConv2d(nn.Conv2d):
    """A Conv2d whose input passes the Site `<path>.in`; shares the parameters of the layer it stands for."""

    def __init__(self, layer: nn.Conv2d, path: str) -> None:
        super().__init__(layer.in_channels, layer.out_channels, (1, 1), bias=layer.bias is not None, device="meta")
        # The rest of the geometry is copied, because nn.Conv2d spells it in more ways than its constructor types admit.
        self.kernel_size, self.stride, self.padding = layer.kernel_size, layer.stride, layer.padding
        self.dilation, self.groups, self.padding_mode = layer.dilation, layer.groups, layer.padding_mode
        self._reversed_padding_repeated_twice = layer._reversed_padding_repeated_twice
        self.weight, self.bias = layer.weight, layer.bias
        add_step(self, layer)
        self.site: Site | SplitSite = Site(input_name(path))
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        return convolution(self, self.site(input))


class AttentionSites(nn.Module):
    """The four operands of an attention's two matmuls: `softmax(q k^T) v` with q already scaled."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.q, self.k, self.v, self.p = map(Site, attention_names(path))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """Scaled dot-product attention, each operand through its Site.

        Args:
            q, k, v: `(batch, heads, tokens, channels of a head)`.
            mask: added to the scores, None for none.

        Returns:
            `(batch, heads, query tokens, channels of a head)`.
        """
        scores = self.q(q * scale) @ self.k(k).transpose(-1, -2)
        if mask is not None:
            scores = scores + mask
        return torch.matmul(self.p(functional.softmax(scores, dim=-1)), self.v(v))


def collect_sites(module: nn.Module) -> dict[str, Site]:
    """Every Site of a network by name, in module order."""
    return {m.name: m for m in module.modules() if isinstance(m, Site)}
