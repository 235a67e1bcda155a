"""The OLSS sampler runs what its table says, and refuses a table that does not fit."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from quad.core.errors import InputError, UsageError
from quad.core.manifest import OlssTable, SamplerSpec
from quad.runtime.samplers import run_sampler

TABLE = OlssTable((999, 500), (0.5, 0.25), ((2.0,), (3.0, 4.0)))


def _run(lab, spec, on_step=None):
    noise = np.array([[1.0, -2.0]])
    return run_sampler(spec, lab.zero_snr("v_prediction"), lambda x, t: x + t, noise, np.random.default_rng(0), on_step)


def test_states_are_the_weighted_sums_of_the_table(lab):
    noise, states = np.array([[1.0, -2.0]]), []
    final = _run(lab, SamplerSpec(kind="olss", steps=2, olss=TABLE), lambda i, t, x: states.append(x))
    first = 0.5 * noise + 2.0 * (noise + 999)
    np.testing.assert_allclose(states[0], first)
    np.testing.assert_allclose(final, 0.25 * noise + 3.0 * (noise + 999) + 4.0 * (first + 500))


def test_table_survives_json(lab):
    spec = SamplerSpec(kind="olss", steps=2, olss=TABLE)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=SamplerSpec) == spec


@pytest.mark.parametrize(
    ("spec", "error", "text"),
    [
        (SamplerSpec(kind="olss", steps=2), InputError, r"^sampler 'olss': expected a solved table, found none; [^\n]+$"),
        (SamplerSpec(kind="olss", steps=3, olss=TABLE), UsageError, r"^sampler 'olss': expected 2 steps, as solved, found 3; [^\n]+$"),
        (
            SamplerSpec(kind="olss", steps=2, olss=OlssTable((9, 1), (1.0, 1.0), ((1.0,), (1.0,)))),
            InputError,
            r"^olss table: expected 2 weights and rows of 1 to 2, found 2 and \[1, 1\]; [^\n]+$",
        ),
        (
            SamplerSpec(kind="olss", steps=1, olss=OlssTable((1000,), (1.0,), ((1.0,),))),
            InputError,
            r"^olss table: expected timesteps 0 to 999, found \[1000\]; [^\n]+$",
        ),
        (SamplerSpec(kind="olss", steps=0, olss=OlssTable((), (), ())), InputError, r"^olss table: expected 0 weights"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(lab, spec, error, text):
    with pytest.raises(error, match=text):
        _run(lab, spec)
