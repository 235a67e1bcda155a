"""Skip concats of a U-Net: the layers that read one get two Sites, one for each half of the channels.

Source: docs/method.md section 5, step 3.

A resnet of an up block reads `cat(decoder, skip)` in `norm1` (hence `conv1`, whose channels keep their order) and in `conv_shortcut`.
"""

from __future__ import annotations

from typing import Any

from quad.core.errors import UnsupportedError, mismatch
from quad.core.tensor_names import parse
from quad.model.slots.network import SlottedNetwork
from quad.model.slots.sites import Site, SitedConv2d, SplitSite, collect_sites

_READERS = ("conv1", "conv_shortcut")


def skip_channels(unet: Any) -> list[int]:
    """Channels of every skip in the order in which the down path pushes them; the up path pops from the end.

    Source: diffusers UNet2DConditionModel: `conv_in`, then each resnet and each downsampler of each down block.
    """
    channels = [int(unet.conv_in.out_channels)]
    for block in unet.down_blocks:
        channels += [int(resnet.out_channels) for resnet in block.resnets]
        if getattr(block, "downsamplers", None):
            channels.append(channels[-1])
    return channels


def split_skips(network: SlottedNetwork) -> tuple[str, ...]:
    """Give the readers of every skip concat their two Sites, in place; the float network stays as it is, bit for bit.

    Returns:
        Paths of the split convolutions, in module order; none in a denoiser that is no U-Net.

    Raises:
        UnsupportedError: the up path does not pop what the down path pushed.
    """
    unet: Any = network.unet
    if not hasattr(unet, "up_blocks"):
        return ()
    channels, paths = skip_channels(unet), []
    for i, block in enumerate(unet.up_blocks):
        for j, resnet in enumerate(block.resnets):
            path = f"up_blocks.{i}.resnets.{j}"
            decoder_channels = int(resnet.in_channels) - (channels.pop() if channels else 0)
            if decoder_channels <= 0 or decoder_channels == resnet.in_channels:
                remedy = "build without split skips"
                raise UnsupportedError(mismatch(path, "channels of a decoder and a skip", resnet.in_channels, remedy))
            paths += [f"{path}.{name}" for name in _READERS if _split(getattr(resnet, name, None), decoder_channels)]
    network.sites = collect_sites(unet)
    return tuple(paths)


def _split(layer: object, decoder_channels: int) -> bool:
    """True where the layer is there; one that is split already stays."""
    if not isinstance(layer, SitedConv2d):
        return False
    if isinstance(layer.site, Site):
        layer.site = SplitSite(parse(layer.site.name).path, decoder_channels)
    return True
