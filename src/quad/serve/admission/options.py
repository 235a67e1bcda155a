"""How a client wants its LoRA file admitted."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from quad.core.manifest import AdapterName
from quad.core.sampling import AdapterDefaults
from quad.lora.low_rank import MIN_ENERGY
from quad.runtime.adapter_defaults import MOST_GUIDANCE


class AdmissionOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """How a LoRA file is admitted: the options of `quad adapt` by their names, in the query of the call that sends it.

    Args:
        task: what it is for; None for the task of its name where `like` is given, else for none.
        like: a task of the bundle whose way (conditioning, sampler) a new task takes.
        sampler, guidance, trigger: how it is meant to be run, before what its file says.
        min_energy: it is refused where a module keeps less of its update.
        allow_unused_keys: pass over LoRA keys that match nothing.
    """

    task: Annotated[AdapterName, Meta(description="What the LoRA is for: a new task, with `like`.")] | None = None
    like: Annotated[AdapterName, Meta(description="The task of the bundle that a new task takes its inputs and sampler from.")] | None = (
        None
    )
    sampler: Annotated[str, Meta(max_length=64, description="KIND or KIND:STEPS that it is meant for.")] | None = None
    guidance: Annotated[float, Meta(ge=-MOST_GUIDANCE, le=MOST_GUIDANCE, description="Guidance that it is meant for.")] | None = None
    trigger: Annotated[str, Meta(max_length=1000, description="Words that a prompt has to say for it to show.")] | None = None
    min_energy: Annotated[float, Meta(ge=0, le=1, description="Share of a module's update that must be kept.")] = MIN_ENERGY
    allow_unused_keys: Annotated[bool, Meta(description="Pass over LoRA keys that match nothing.")] = False

    @property
    def defaults(self) -> AdapterDefaults:
        """How it is meant to be run, as far as this says."""
        return AdapterDefaults(sampler=self.sampler, guidance=self.guidance, trigger_words=self.trigger)
