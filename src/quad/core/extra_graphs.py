"""Names of the graphs that only some bundles have, and of what passes between them and the others."""

from __future__ import annotations

SHALLOW_UNET = "unet_shallow"  # the U-Net without what the deep feature stands for
DEEP_FEATURE = "deep_feature"  # the U-Net's second output, and an input of the shallow one
TINY_DECODER = "tiny_decoder"  # stands for `vae_decoder` where a caller asks for it
