"""Effects of a bundle of several groups: each adapter's is measured in its own group's graph."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from quad import QuadPipeline
from quad.evaluate.figures import effect
from quad.evaluate.figures.effect import TrueEffect, bundle_effects, open_unet, unet_output
from quad.quantize.observe.probes import Probe
from quad.runtime.adapters.store import AdapterStore
from tests.admit.frozen import SHAPES, freeze, regroup
from tests.runtime.conftest import make_bundle

LOUD = "sketch"


def test_an_effect_is_that_in_its_own_groups_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = freeze(make_bundle(tmp_path / "tiny"), tmp_path / "frozen")
    pipe = QuadPipeline.from_pretrained(regroup(frozen, tmp_path / "grouped", widened=64.0, members=[LOUD]), threads=1)
    store, rng = AdapterStore(pipe.bundle), np.random.default_rng(5)
    true = []
    for name in store.names:
        session = open_unet(pipe.bundle.of_group(int(name == LOUD)), pipe.engine)
        inputs = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in SHAPES.items()}
        probe = Probe(component="unet", source=name, inputs=inputs, task=name, run=0, sigma_t=1.0)
        full, zero = (unet_output(session, buffers, probe) for buffers in (store.buffers(name), store.zeros))
        true.append(TrueEffect(probe, full - zero))
    monkeypatch.setattr(effect, "held_out_probes", lambda *_: [])
    monkeypatch.setattr(effect, "true_effects", lambda *_: true)
    measured = bundle_effects(pipe, SimpleNamespace(device="cpu"), tmp_path, {}, 1)  # type: ignore[arg-type]
    assert measured.keys() == set(store.names)
    assert all(each is not None and each.sqnr_db > 150.0 for each in measured.values())
