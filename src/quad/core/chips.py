"""States of a chip after a build, in the words that `bundle.json` records and `quad inspect` shows: never more than was done."""

from __future__ import annotations

EMULATED = "compiled and run in emulation"
ON_CPU_DEVICE = "compiled and run on the CPU device"
ACCEPTED = "accepted by the plugin's front end, not compiled"
NOT_COMPILED = "not compiled"
RUNS_ON_CPU = "runs on LiteRT's CPU"
CPU = "any CPU"  # the name, among chips, of what needs none
