"""The base that a LoRA was trained on, by its trainer's metadata, and whether the base at hand is like it.

Keys are those of sd-scripts (`ss_`) and of Stability's ModelSpec (`modelspec.`), which sd-scripts, LyCORIS and OneTrainer write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from quad.core.families import FAMILIES, SIGNS
from quad.lora.base_names import OTHER_BASE, base_by_width

_NAMED_VELOCITY = tuple(family.name for family in FAMILIES if family.lora.named_velocity)
_V = re.compile(r"(^|[-_])v($|[-_/])|v[-_ ]?pred|velocity")
_TRUE = ("true", "1")
_LONGEST = 60
EPSILON, V_PREDICTION = "epsilon", "v_prediction"


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """A base, as far as the metadata names it.

    Args:
        name: as the metadata has it, quoted; "" where it says none.
        family: of models; "" where the name is none known here.
        prediction: what that base answers with, `epsilon` or `v_prediction`; "" where nothing says it.
        dylora_block: ranks in a block of LyCORIS's DyLoRA, 0 where the trainer was another. Its forward pass multiplies by
            alpha / blocks, its file reads as alpha / dim.
    """

    name: str = ""
    family: str = ""
    prediction: str = ""
    dylora_block: int = 0

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> TrainedOn:
        """Of the words in a file's header."""
        names = [metadata[key] for key in ("modelspec.architecture", "ss_base_model_version") if metadata.get(key)]
        return cls(
            name=json.dumps(names[0][:_LONGEST]) if names else "",
            family=next((family for name in names if (family := _family(name))), ""),
            prediction=_prediction(metadata, names),
            dylora_block=_dylora_block(metadata),
        )


def family_notes(trained: TrainedOn, widths: Iterable[int]) -> tuple[str, ...]:
    """A line where the base at hand is of another family than that of the metadata.

    Args:
        widths: of the text features that the base reads; none where nothing of it tells the family.
    """
    families = {base_by_width(width) for width in widths} - {OTHER_BASE}
    if not trained.family or not families or trained.family in families:
        return ()
    return (f"trained on {trained.family}, by its metadata ({trained.name}); this base is like {' or '.join(sorted(families))}",)


def strength_notes(trained: TrainedOn) -> tuple[str, ...]:
    """A line where the file's own alpha is not the strength that was trained."""
    if trained.dylora_block <= 1:
        return ()
    block = trained.dylora_block
    return (f"DyLoRA of LyCORIS in blocks of {block}, by its metadata: the file reads weaker, weight {block} is as strong as trained",)


def prediction_notes(trained: TrainedOn, prediction: str) -> tuple[str, ...]:
    """A line where the base at hand answers with something else than that of the metadata."""
    if trained.prediction in ("", prediction):
        return ()
    return (f"trained on a base that predicts {trained.prediction}, by its metadata; this one predicts {prediction}, and it may not work",)


def _family(name: str) -> str:
    spelled = name.lower().replace("_", "-")
    return next((signs.name for signs in SIGNS if signs.metadata and re.match(signs.metadata, spelled)), "")


def _prediction(metadata: Mapping[str, str], names: Iterable[str]) -> str:
    """Said outright, or by the base's name: sd-scripts has `sd_v2_v`, ModelSpec `stable-diffusion-v2-768-v`."""
    stated = metadata.get("modelspec.prediction_type", "").lower()
    if stated:
        return EPSILON if stated.startswith("eps") else V_PREDICTION if _V.search(stated) else ""
    if "ss_v_parameterization" in metadata:
        return V_PREDICTION if metadata["ss_v_parameterization"].lower() in _TRUE else EPSILON
    known = [name.lower() for name in names if _family(name) in _NAMED_VELOCITY]
    if not known:
        return ""
    return V_PREDICTION if any(_V.search(name) for name in known) else EPSILON


def _dylora_block(metadata: Mapping[str, str]) -> int:
    """By sd-scripts' record of the arguments that LyCORIS was called with; its own default is 4."""
    if metadata.get("ss_network_module") != "lycoris.kohya":
        return 0
    try:
        arguments = json.loads(metadata.get("ss_network_args", ""))
        return int(arguments.get("block_size", 4)) if arguments["algo"].lower() == "dylora" else 0
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return 0  # a header is anybody's words: what is no such record says nothing
