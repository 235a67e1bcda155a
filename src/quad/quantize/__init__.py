"""From a float slotted network and its adapters to one shared profile, and adapters as integers of that profile.

    networks + feeds --observe--> Statistics --unify(weights, slots, adapters)--> pooled Profile
    pooled Profile + Statistics --own_profiles--> --score_adapters(probes)--> Sensitivity --choose--> --choose_ranges--> Profile
    adapter --balance--> --align(profile)--> [--distill(teacher, simulated network)-->] integers to bind
    network --simulated(profile)--> the same network as the compiled graph will compute it

| file | what |
|---|---|
| affine | torch twins of `core.encoding`, with straight-through gradients |
| histogram, observers | streaming statistics per site and source, memory bounded |
| calibrate, session | real work for the observers: every task's own sampler on given samples |
| ranges, rules, unify | bits (data), ranges, the pooled profile |
| probes | inputs of single U-Net calls, to compare networks on |
| divergence, sensitivity | QSS of every adapter by two divergences |
| anchor, modes | whose ranges the profile takes, the N x N table; the profile with those ranges |
| adapters, align | balance, rescaling to the frozen slot encodings, integers |
| lessons, examples, student, training, checkpoint, distill | the float network's answers, and training an adapter's weights to give them |
| layers, bias, simulate | layers by profile name, bias correction, quantsim |
| precision, ranking | what `--precision` asks for, which sites go to 8 bits |
| steps, equalize | the quality steps as switches, channels balanced through norms |
"""

from quad.quantize.adapters import balance, balanced_inputs, dequantize_adapter, integer_slots, quantize_adapter
from quad.quantize.affine import FakeQuantizer, dequantize, fake_quantize, quantize
from quad.quantize.anchor import Choice, CrossTable, choose, cross_table
from quad.quantize.bias import apply_biases, corrected_biases
from quad.quantize.calibrate import CalibrationOptions, CalibrationSample, calibrate, calibration_feeds, component_networks
from quad.quantize.layers import layers_of, weights_of
from quad.quantize.modes import Chosen, choose_ranges, own_profile, own_profiles
from quad.quantize.observers import Feed, Statistics, observe
from quad.quantize.probes import Probe, ProbeOptions, record_probes
from quad.quantize.ranges import RangeOptions
from quad.quantize.rules import RULES, Rule
from quad.quantize.sensitivity import Score, Sensitivity, score_adapters
from quad.quantize.session import TorchSession, torch_sessions
from quad.quantize.simulate import simulated
from quad.quantize.unify import UnifyOptions, unify

__all__ = [
    "RULES",
    "CalibrationOptions",
    "CalibrationSample",
    "Choice",
    "Chosen",
    "CrossTable",
    "FakeQuantizer",
    "Feed",
    "Probe",
    "ProbeOptions",
    "RangeOptions",
    "Rule",
    "Score",
    "Sensitivity",
    "Statistics",
    "TorchSession",
    "UnifyOptions",
    "apply_biases",
    "balance",
    "balanced_inputs",
    "calibrate",
    "calibration_feeds",
    "choose",
    "choose_ranges",
    "component_networks",
    "corrected_biases",
    "cross_table",
    "dequantize",
    "dequantize_adapter",
    "fake_quantize",
    "integer_slots",
    "layers_of",
    "observe",
    "own_profile",
    "own_profiles",
    "quantize",
    "quantize_adapter",
    "record_probes",
    "score_adapters",
    "simulated",
    "torch_sessions",
    "unify",
    "weights_of",
]
