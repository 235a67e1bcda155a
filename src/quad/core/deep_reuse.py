"""Names of what a bundle built for reuse of deep features has beside its U-Net."""

from __future__ import annotations

SHALLOW_UNET = "unet_shallow"  # the component: the U-Net without what the deep feature stands for
DEEP_FEATURE = "deep_feature"  # the U-Net's second output, and an input of the shallow one
