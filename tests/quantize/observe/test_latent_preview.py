"""The colours of a latent are the nearest linear map to what the decoder makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from quad.model.base.open import Base
from quad.quantize.observe.calibrate import CalibrationSample, component_networks
from quad.quantize.observe.latent_preview import fit_preview
from quad.quantize.observe.torch_session import torch_sessions


def test_no_other_linear_map_is_nearer(base: Base, tiny: Any) -> None:
    networks = component_networks(base, tiny.network)
    picture = np.random.default_rng(0).integers(0, 256, (base.picture_size.height, base.picture_size.width, 3)).astype(np.uint8)
    preview = fit_preview(base, networks, tiny.table, [CalibrationSample(task="text-to-image", prompt="a", image=picture)])
    assert preview is not None
    sessions = torch_sessions(base, networks, tiny.table)
    latent = sessions["vae_encoder"].run({"image": (picture.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None]})
    decoded = sessions["vae_decoder"].run({"latent": latent})
    factor, (_, _, height, width) = base.latent.factor, latent.shape
    colours = decoded[0].reshape(3, height, factor, width, factor).mean(axis=(2, 4)).reshape(3, -1)
    z = np.vstack([latent[0].reshape(latent.shape[1], -1), np.ones(height * width)]).astype(np.float64)
    fitted = np.column_stack([np.asarray(preview.weights), np.asarray(preview.bias)])
    residual = colours - fitted @ z
    # Of a least-squares fit nothing is left along any latent channel.
    assert np.abs(residual @ z.T).max() < 1e-3 * np.abs(colours @ z.T).max()
    assert np.square(residual).mean() < np.square(colours).mean()


def test_without_a_picture_there_is_none(base: Base, tiny: Any) -> None:
    sample = CalibrationSample(task="text-to-image", prompt="a")
    assert fit_preview(base, component_networks(base, tiny.network), tiny.table, [sample]) is None
