"""From a float slotted network and its adapters to one shared profile, and adapters as integers of that profile.

    networks + feeds --observe--> Statistics --unify(weights, slots, adapters)--> Profile
    adapter --balance--> --quantize_adapter(profile)--> integers to bind
    network --simulated(profile)--> the same network as the compiled graph will compute it

| file | what |
|---|---|
| affine | torch twins of `core.encoding`, with straight-through gradients |
| histogram, observers | streaming statistics per site and source, memory bounded |
| calibrate, session | real work for the observers: every task's own sampler on given samples |
| ranges, rules, unify | bits (data), ranges, the pooled profile |
| probes | inputs of single U-Net calls, to compare networks on |
| adapters | balance and integers |
| layers, bias, simulate | layers by profile name, bias correction, quantsim |

Places kept for what comes next (method.md sections 3-5): `sensitivity` (QSS by two divergences, the N x N table) between observe and unify;
`anchor` (ranges of the most sensitive adapter, or unified ones where several are equal) as another way from Statistics to Profile, hence
histograms per source; `align` (diagonal and SVD alignment to the anchor) where `balance` is now; `distill` (LoRA weights through
`simulated`, whose fake quantizers already pass gradients) between Profile and quantize_adapter; `mixed` (8-bit activation sites by isolated
damage) as other `rules`.
"""

from quad.quantize.adapters import balance, balanced_inputs, dequantize_adapter, integer_slots, quantize_adapter
from quad.quantize.affine import FakeQuantizer, dequantize, fake_quantize, quantize
from quad.quantize.bias import apply_biases, corrected_biases
from quad.quantize.calibrate import CalibrationOptions, CalibrationSample, calibrate, calibration_feeds, component_networks
from quad.quantize.layers import layers_of, weights_of
from quad.quantize.observers import Feed, Statistics, observe
from quad.quantize.probes import Probe, ProbeOptions, record_probes
from quad.quantize.ranges import RangeOptions
from quad.quantize.rules import RULES, Rule
from quad.quantize.session import TorchSession, torch_sessions
from quad.quantize.simulate import simulated
from quad.quantize.unify import UnifyOptions, unify

__all__ = [
    "RULES",
    "CalibrationOptions",
    "CalibrationSample",
    "FakeQuantizer",
    "Feed",
    "Probe",
    "ProbeOptions",
    "RangeOptions",
    "Rule",
    "Statistics",
    "TorchSession",
    "UnifyOptions",
    "apply_biases",
    "balance",
    "balanced_inputs",
    "calibrate",
    "calibration_feeds",
    "component_networks",
    "corrected_biases",
    "dequantize",
    "dequantize_adapter",
    "fake_quantize",
    "integer_slots",
    "layers_of",
    "observe",
    "quantize",
    "quantize_adapter",
    "record_probes",
    "simulated",
    "torch_sessions",
    "unify",
    "weights_of",
]
