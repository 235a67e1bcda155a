"""Where a run may begin, and what is held on its way."""

from __future__ import annotations

import numpy as np
import pytest

from quad.core.errors import InputError, UnsupportedError, UsageError
from quad.core.manifest import NoiseSchedule, OlssTable, SamplerSpec
from quad.core.sampling import SamplerSettings
from quad.runtime.samplers import Start, add_noise, run_sampler

SD = NoiseSchedule(beta_schedule="scaled_linear", rescale_zero_snr=False, prediction="epsilon")
KINDS = ["ddim", "ddpm", "pndm", "euler", "euler-ancestral", "heun", "lms", "dpmsolver++", "sde-dpmsolver++", "unipc", "lcm"]
NOISE = np.random.default_rng(1).standard_normal((1, 4, 2, 2))
X0 = np.random.default_rng(2).standard_normal(NOISE.shape)


def _spec(kind, steps=10, **settings):
    return SamplerSpec(kind=kind, steps=steps, settings=SamplerSettings(**settings))


def _true_noise(x, t):
    """A network that always knows which noise was added: every sampler must find its way back to X0."""
    return NOISE.astype(x.dtype)


def _run(spec, start, model=_true_noise, on_step=None):
    return run_sampler(spec, SD, model, NOISE, np.random.default_rng(0), on_step, start=start)


# pndm begun in the middle reads one timestep for another, as diffusers' does.
@pytest.mark.parametrize(
    ("kind", "strength"),
    [(kind, s) for kind in ("ddim", "euler", "heun", "lms", "dpmsolver++", "unipc") for s in (0.3, 0.75, 1.0)] + [("pndm", 1.0)],
)
def test_who_knows_the_noise_finds_the_latent_again(kind, strength):
    found = _run(_spec(kind, timestep_spacing="leading", steps_offset=1), Start(X0, strength))
    np.testing.assert_allclose(found, X0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_strength_is_the_share_of_steps_taken(kind, strength):
    whole, part = [], []
    _run(_spec(kind), None, on_step=lambda i, t, x: whole.append(t))
    _run(_spec(kind), Start(X0, strength), on_step=lambda i, t, x: part.append((i, t)))
    taken = int(10 * strength)
    calls = {"heun": 2 * taken - 1, "pndm": taken + 1}.get(kind, taken)
    assert part == list(enumerate(whole[-calls:]))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_is_kept_at_the_level_of_the_next_call(kind):
    levels, states = [], []

    def keep(x, abar):
        levels.append(abar)
        states.append(add_noise(X0, NOISE, abar))
        return states[-1]

    def network(x, t):
        if states:
            np.testing.assert_allclose(x, states[-1], atol=1e-12)
        return np.tanh(x)

    seen = []
    found = _run(_spec(kind), Start(keep=keep), network, lambda i, t, x: seen.append(x))
    np.testing.assert_array_equal(found, X0)
    np.testing.assert_array_equal(seen, states)
    assert levels[-1] == 1.0
    assert (np.diff(levels) >= 0.0).all()


def test_noise_alone_is_the_default():
    spec = _spec("dpmsolver++")
    np.testing.assert_array_equal(
        _run(spec, None, np.cos_like if False else lambda x, t: np.tanh(x)), _run(spec, Start(), lambda x, t: np.tanh(x))
    )


@pytest.mark.parametrize(
    ("start", "error", "text"),
    [
        (Start(X0, 0.0), UsageError, r"^strength: expected more than 0, at most 1, found 0\.0; [^\n]+$"),
        (Start(X0, 1.5), UsageError, r"^strength: expected more than 0, at most 1, found 1\.5; [^\n]+$"),
        (Start(X0, float("nan")), UsageError, r"^strength: expected more than 0, at most 1, found nan; [^\n]+$"),
        (Start(X0, 0.05), UsageError, r"^strength: expected one step at least, found 10 steps at strength 0\.05; [^\n]+$"),
        (Start(None, 0.5), UsageError, r"^strength: expected 1 where a run begins at noise, found 0\.5; [^\n]+$"),
        (Start(X0[..., :1], 0.5), InputError, r"^latent to begin at: expected shape \(1, 4, 2, 2\), found \(1, 4, 2, 1\); [^\n]+$"),
    ],
)
def test_starts_that_cannot_be_are_refused(start, error, text):
    with pytest.raises(error, match=text):
        _run(_spec("ddim"), start)


@pytest.mark.parametrize("start", [Start(X0), Start(keep=lambda x, abar: x)])
def test_olss_starts_at_noise(start):
    spec = SamplerSpec(kind="olss", steps=1, olss=OlssTable((999,), (1.0,), ((0.5,),)))
    with pytest.raises(UsageError, match=r"^sampler 'olss': expected a run from noise, [^\n]+, found a given latent; [^\n]+$"):
        _run(spec, start)


@pytest.mark.parametrize(
    ("spec", "schedule", "error", "text"),
    [
        (_spec("pndm"), NoiseSchedule(), UnsupportedError, "found zero terminal SNR; choose ddim"),
        (_spec("pndm"), NoiseSchedule(rescale_zero_snr=False, prediction="sample"), UnsupportedError, "found sample; choose ddim"),
        (_spec("pndm", 3, skip_prk_steps=False), SD, UsageError, "expected 4 steps or more, found 3"),
        (_spec("dpmsolver"), SD, UnsupportedError, "expected final_sigmas_type sigma_min, found zero"),
        (_spec("sde-dpmsolver++", solver_order=3), SD, UnsupportedError, "expected solver_order 1 or 2, found 3"),
        (_spec("unipc", lower_order_final=False), SD, UnsupportedError, "expected lower_order_final"),
        (_spec("dpmsolver++", 1000), SD, UsageError, "expected 1 to 999 steps, found 1000"),
        (_spec("unipc", 0), SD, UsageError, "expected 1 to 999 steps, found 0"),
        (_spec("heun", 1001), SD, UsageError, "expected 1 to 1000 steps, found 1001"),
        (_spec("ddim", 1000, timestep_spacing="leading", steps_offset=1), SD, UsageError, "timesteps under 1000, found 1000"),
        (_spec("dpmsolver++", sigmas="karras", final_sigmas_type="sigma_min"), SD, UsageError, "expected noise levels that fall"),
        (_spec("euler", sigmas="karras", sigma_min=2.0, sigma_max=2.0), SD, UsageError, "expected noise levels that fall"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(spec, schedule, error, text):
    with pytest.raises(error, match=text) as caught:
        run_sampler(spec, schedule, lambda x, t: x, NOISE, np.random.default_rng(0))
    assert "\n" not in str(caught.value)


def test_runge_kutta_steps_want_the_whole_route():
    with pytest.raises(UsageError, match=r"^strength: expected 1 with a sampler that begins with Runge-Kutta steps, found 0\.5; [^\n]+$"):
        _run(_spec("pndm", skip_prk_steps=False), Start(X0, 0.5))
