"""How much each adapter suffers from quantization: QSS by two divergences, with intervals. Source: QUAD Eq. 8; docs/method.md section 4.

    QSS_i = E_x[ D( f_i(x) || f~_i(x) ) ]

f~_i is the network under the encodings that adapter i alone would get; x are probes: the sampler's own timesteps on full-precision runs,
with and without the prompt where the task is guided.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau
from torch import Tensor, nn

from quad.core.decibels import floored_sqnr_db
from quad.core.errors import InputError, mismatch
from quad.core.profile import Profile
from quad.core.progress import Progress, silent
from quad.core.slots import UNET, SlotTable
from quad.lora.fit.integers import balanced_inputs, dequantize_adapter, quantize_adapter
from quad.lora.read import FloatAdapter
from quad.quantize.correct.simulate import of_weights, simulated
from quad.quantize.observe.batched_calls import batched_forward
from quad.quantize.observe.probe import one_side_each
from quad.quantize.observe.probes import Probe, teacher_outputs
from quad.quantize.processes.dealt import dealt, json_codec
from quad.quantize.profile.divergence import MIN_VALUES, histogram_js, paired_gaussian_js, split_half_floor

RESAMPLES = 2000
Outputs = list[NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One adapter.

    Args:
        qss: mean paired-Gaussian-JS, bits.
        interval: its 95 % bootstrap interval over calls.
        qss_hist: hist-JS less its floor, below 0 where the damage cannot be told from sampling; None for under 16384 values.
        hist_floor: split-half hist-JS of full precision against itself.
        sqnr_db: of the raw output.
        calls: paired-Gaussian-JS of each probe, in their order.
    """

    qss: float
    interval: tuple[float, float]
    qss_hist: float | None
    hist_floor: float | None
    sqnr_db: float
    calls: tuple[float, ...]


@dataclass(frozen=True)
class Sensitivity:
    """All adapters by name.

    Args:
        tau: Kendall's rank agreement of the two divergences; None for fewer than two adapters, or where one of them has no order.
    """

    scores: Mapping[str, Score]
    tau: float | None

    @property
    def ranking(self) -> tuple[str, ...]:
        """Names, most sensitive first."""
        return tuple(sorted(self.scores, key=lambda name: (-self.scores[name].qss, name)))

    def to_json(self) -> dict[str, Any]:
        """The fields of `profile` in `quad build --json`."""
        scores = {name: asdict(self.scores[name]) for name in self.ranking}
        columns = {"qss": "qss", "qss_interval": "interval", "qss_hist": "qss_hist", "qss_hist_floor": "hist_floor", "sqnr_db": "sqnr_db"}
        table = {title: {name: score[field] for name, score in scores.items()} for title, field in columns.items()}
        return {"ranking": list(self.ranking), **table, "tau": self.tau}


def score_adapters(
    network: nn.Module,
    table: SlotTable,
    adapters: Sequence[FloatAdapter],
    profiles: Mapping[str, Profile],
    probes: Mapping[str, Sequence[Probe]],
    progress: Progress = silent,
) -> Sensitivity:
    """QSS of every adapter.

    Args:
        network: float slotted U-Net with Sites.
        profiles: adapter name -> the encodings it alone would get (`own_profile`).
        probes: of `record_probes` with the same network; probes of the base are not used.
        progress: told of each adapter before its turn, with the share that is done.

    Raises:
        InputError: an adapter has no probe, or an output is NaN or infinite.
    """

    def asked_for() -> Iterator[FloatAdapter]:
        for number, adapter in enumerate(adapters):
            progress(adapter.name, number / len(adapters))
            yield adapter

    def scored(adapter: FloatAdapter) -> Score:
        calls = probes.get(adapter.name, ())
        if not calls:
            next_step = "add a calibration sample that names it"
            raise InputError(mismatch("sensitivity", f"a probe of adapter {adapter.name!r}", "none", next_step))
        calls = _few_rows(calls)
        true = float_outputs(network, table, adapter, calls)
        return _score(true, simulated_outputs(network, table, adapter, calls, profiles[adapter.name]), calls)

    with ExitStack() as stack:
        if all(probe.expected is not None for calls in probes.values() for probe in calls):  # nobody asks for the float network
            for profile in list(profiles.values())[:1]:  # weights are rounded once: the profiles differ in activations
                stack.enter_context(simulated(network, of_weights(profile, UNET), UNET))
        results = list(dealt(scored, asked_for(), json_codec(Score)))
    scores = {adapter.name: score for adapter, score in zip(adapters, results, strict=True)}
    return Sensitivity(scores, _agreement(scores))


def _few_rows(calls: Sequence[Probe]) -> Sequence[Probe]:
    """One side of every call, where their answers still fill a histogram."""
    rows = one_side_each(calls)
    return rows if sum(np.size(row.expected) for row in rows if row.expected is not None) >= MIN_VALUES else calls


def float_outputs(network: nn.Module, table: SlotTable, adapter: FloatAdapter, probes: Sequence[Probe]) -> Outputs:
    """Raw outputs `(B, c, h, w)` of full precision with this adapter, one per probe; those that were recorded are not computed again.

    Raises:
        InputError: the adapter, or an output, is NaN or infinite.
    """
    return _finite(teacher_outputs(network, probes, balanced_inputs(adapter, table)), adapter.name)


def simulated_outputs(
    network: nn.Module, table: SlotTable, adapter: FloatAdapter, probes: Sequence[Probe], profile: Profile
) -> Outputs:  # fmt: skip
    """Raw outputs `(B, c, h, w)` with this adapter under a profile, one per probe; errors as `quantize_adapter` and `float_outputs`."""
    slots = dequantize_adapter(quantize_adapter(adapter, table, profile), table, profile)
    with simulated(network, profile, UNET):
        return _finite(batched_forward(network, [probe.tensors() for probe in probes], slots), adapter.name)


def _finite(outputs: Sequence[Tensor], name: str) -> Outputs:
    if not all(torch.isfinite(output).all() for output in outputs):
        next_step = "check the weights of model and adapter"
        raise InputError(mismatch(f"sensitivity of adapter {name!r}", "finite network outputs", "NaN or Inf", next_step))
    return [output.numpy() for output in outputs]


def divergences(true: Outputs, quantized: Outputs, probes: Sequence[Probe]) -> tuple[float, ...]:
    """Paired-Gaussian-JS of each call."""
    return tuple(paired_gaussian_js(y, y_hat, probe.sigma_t) for y, y_hat, probe in zip(true, quantized, probes, strict=True))


def _score(true: Outputs, quantized: Outputs, probes: Sequence[Probe]) -> Score:
    calls = divergences(true, quantized, probes)
    y, y_hat = (np.concatenate([part.ravel() for part in parts]).astype(np.float64) for parts in (true, quantized))
    low, high = np.quantile(bootstrap_means({"": calls})[""], [0.025, 0.975])
    floor = split_half_floor(y) if y.size >= MIN_VALUES else None
    hist = None if floor is None else histogram_js(y, y_hat) - floor
    return Score(
        qss=float(np.mean(calls)),
        interval=(float(low), float(high)),
        qss_hist=hist,
        hist_floor=floor,
        sqnr_db=floored_sqnr_db(y, y_hat),
        calls=calls,
    )


def bootstrap_means(calls: Mapping[str, Sequence[float]], seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Means of resampled calls, `(RESAMPLES,)` each, paired over the names.

    One set of draws serves all: the k-th draw takes the same part of the calls everywhere. Where adapters have as many runs as each other,
    that is the same run, hence the same noise; where a sampler of few steps needed more runs, the pairing is by place alone, which can only
    widen the interval of a difference. Calls count as independent.
    """
    draws = np.random.default_rng(seed).random((RESAMPLES, max((len(values) for values in calls.values()), default=1)))
    means: dict[str, NDArray[np.float64]] = {}
    for name, values in calls.items():
        picked = (draws[:, : len(values)] * len(values)).astype(np.int64)
        means[name] = np.asarray(values, np.float64)[picked].mean(axis=1)
    return means


def _agreement(scores: Mapping[str, Score]) -> float | None:
    pairs = [(score.qss, score.qss_hist) for score in scores.values() if score.qss_hist is not None]
    if len(pairs) < 2:
        return None
    tau = float(kendalltau(*zip(*pairs, strict=True)).statistic)
    return tau if np.isfinite(tau) else None
