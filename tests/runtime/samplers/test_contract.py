"""Every prediction tells the same (x_0, eps), and a network that answers nonsense is caught."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quad.core.errors import BackendError, UnsupportedError
from quad.runtime.samplers.contract import split_output
from quad.runtime.samplers.run import network_output


@given(abar=st.floats(0.01, 0.99), seed=st.integers(0, 2**16))
def test_all_predictions_give_back_the_clean_picture_and_the_noise(abar, seed):
    x0, eps = np.random.default_rng(seed).standard_normal((2, 3, 4))
    x = np.sqrt(abar) * x0 + np.sqrt(1 - abar) * eps
    v = np.sqrt(abar) * eps - np.sqrt(1 - abar) * x0
    for prediction, output in {"epsilon": eps, "sample": x0, "v_prediction": v}.items():
        found = split_output(prediction, output, x, abar)
        np.testing.assert_allclose(found, (x0, eps), atol=1e-12)


def test_v_prediction_holds_at_zero_terminal_snr():
    eps, x0 = np.ones((2, 2)), np.full((2, 2), 3.0)
    np.testing.assert_array_equal(split_output("v_prediction", -x0, eps, 0.0), (x0, eps))


def test_epsilon_at_zero_terminal_snr_is_refused():
    with pytest.raises(UnsupportedError, match=r"^sampler: expected v_prediction or sample at zero terminal SNR, found epsilon; [^\n]+$"):
        split_output("epsilon", np.ones(2), np.ones(2), 0.0)


def test_unknown_prediction_is_refused():
    with pytest.raises(UnsupportedError, match=r"^noise schedule: expected prediction epsilon, v_prediction or sample, found flow; "):
        split_output("flow", np.ones(2), np.ones(2), 0.5)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (np.zeros((1, 3)), r"network output at timestep 7: expected shape \(1, 2\), found \(1, 3\); "),
        (
            np.array([[0.0, np.nan]]),
            r"network output at timestep 7: expected finite numbers, found NaN or infinity; use guidance_scale",
        ),
    ],
)
def test_nonsense_from_the_network_is_one_line(answer, text):
    with pytest.raises(BackendError, match=text):
        network_output(lambda x, t: answer, np.zeros((1, 2)), 7, np.dtype("float32"))
