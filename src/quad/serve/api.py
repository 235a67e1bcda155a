"""Bodies of the HTTP calls and answers. The OpenAPI document is made from these."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from quad.core import errors
from quad.core.errors import QuadError, UsageError, mismatch
from quad.core.manifest import AdapterName, TaskSpec
from quad.core.picture_size import PictureSize, Pixels
from quad.core.sampling import AdapterDefaults
from quad.runtime.conditioning.condition import DEFAULT_GROW_PX
from quad.runtime.conditioning.mask import MAX_GROW_PX
from quad.runtime.conditioning.prompt_syntax import PromptSyntax
from quad.runtime.conditioning.size_conditions import LARGEST, SIZE_NAMES, SizeConditions
from quad.runtime.request import MOST_REUSE

JSON, PACK = "application/json", "application/octet-stream"
MOST_STEPS, MOST_ADAPTERS, LONGEST_PROMPT = 1000, 16, 4000
LONGEST_ADMISSION_S = 600.0  # of a LoRA file, on the slowest machine
State = Literal["queued", "running", "done", "failed", "cancelled", "expired"]
ENDED: tuple[State, ...] = ("done", "failed", "cancelled", "expired")
Prompt = Annotated[str, Meta(max_length=LONGEST_PROMPT)]
Weight = Annotated[float, Meta(ge=-100, le=100)]
Share = Annotated[float, Meta(ge=0, le=1)]
Sides = tuple[Annotated[int, Meta(ge=0, le=LARGEST)], Annotated[int, Meta(ge=0, le=LARGEST)]]
Picture = Annotated[bytes, Meta(description="base64 of a PNG, JPEG or WebP file")]


_PICTURES = ("image", "mask_image")
_KINDS: Mapping[str, type[QuadError]] = {
    kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, QuadError)
}


class ErrorBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why not: one line, and the class of `quad.core.errors` that it is, so that a client raises what the pipeline would have raised.

    Args:
        reasons: of a LoRA that is refused: slot or activation -> why it does not take it, all of them.
    """

    error: str
    kind: str
    reasons: dict[str, str] = {}


class NewRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One picture to make, by the names of `QuadPipeline.__call__`.

    Args:
        adapters: adapter name -> weight; empty for the base, null for the task's own.
        priority: larger goes first.
        deadline_s: seconds from now after which the picture is of no use.
        client: who asks, in the client's own words; it changes nothing in the order.
        previews: its events tell a coarse look at it after each step too, where the bundle has colours for its latents.
    """

    prompt: Prompt = ""
    task: Annotated[str, Meta(max_length=128)] | None = None
    adapters: Annotated[dict[AdapterName, Weight], Meta(max_length=MOST_ADAPTERS)] | None = None
    image: Picture | None = None
    mask_image: Picture | None = None
    num_inference_steps: Annotated[int, Meta(ge=1, le=MOST_STEPS)] | None = None
    sampler: Annotated[str, Meta(max_length=64)] | None = None
    width: Pixels | None = None
    height: Pixels | None = None
    guidance_scale: Annotated[float, Meta(ge=-1000, le=1000)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    negative_prompt: Prompt = ""
    mask_grow: Annotated[int, Meta(ge=0, le=MAX_GROW_PX)] = DEFAULT_GROW_PX
    strength: Annotated[float, Meta(gt=0, le=1)] | None = None
    image_guidance_scale: Annotated[float, Meta(ge=-1000, le=1000)] | None = None
    guidance_interval: tuple[Share, Share] | None = None
    reuse: Annotated[int, Meta(ge=1, le=MOST_REUSE)] = 1
    tiny_decoder: bool = False
    prompt_syntax: PromptSyntax = "a1111"
    original_size: Sides | None = None
    crops_coords_top_left: Sides | None = None
    target_size: Sides | None = None
    negative_original_size: Sides | None = None
    negative_crops_coords_top_left: Sides | None = None
    negative_target_size: Sides | None = None
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0
    deadline_s: Annotated[float, Meta(gt=0, le=86_400)] | None = None
    client: Annotated[str, Meta(max_length=128)] = ""
    previews: bool = False

    @property
    def sizes(self) -> SizeConditions:
        """The sizes that a model is told, if it is told any."""
        return SizeConditions(**{name: getattr(self, name) for name in SIZE_NAMES})


class Step(msgspec.Struct, frozen=True):
    """One step that was done: its index from 0, how many there are, and its timestep."""

    index: int
    total: int
    timestep: float


class Preview(msgspec.Struct, frozen=True):
    """A coarse look at a picture after a step: the step's index, and a PNG with a pixel for each of the latent's."""

    index: int
    image: Picture


class RequestState(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it stands; what is known only at its end is empty before."""

    id: str
    state: State
    steps_done: int
    steps_total: int | None
    task: str | None = None
    adapters: dict[str, float] = {}
    seed: int | None = None
    notes: tuple[str, ...] = ()
    timings_ms: dict[str, float] = {}
    sampler: str = ""
    guidance: float | None = None
    error: ErrorBody | None = None


class AdapterState(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter: tasks, rank before padding, bits of a weight, bytes on disk, where it comes from, and how it is meant to be run.

    Args:
        headroom: as in `Verdict`.
        previous: an uploaded one has a version before it, to roll back to.
    """

    name: str
    tasks: tuple[str, ...]
    rank: int
    bits: int
    size_bytes: int
    source: Literal["bundle", "installed", "uploaded"]
    defaults: AdapterDefaults = AdapterDefaults()
    headroom: float | None = None
    previous: bool = False


class Adapters(msgspec.Struct, frozen=True):
    """All adapters that a request may name."""

    adapters: tuple[AdapterState, ...]


class Tasks(msgspec.Struct, frozen=True):
    """Task name -> how it conditions the graph; and sizes of pictures, `[width, height]`, the first where none is asked for."""

    tasks: dict[str, TaskSpec]
    sizes: tuple[PictureSize, ...] = ()


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The measured figures of a LoRA that a server admitted.

    Args:
        tasks: that came with it.
        rank, bits, size_bytes: of the pack that it became.
        applied: share of the file's update that the pack holds, of its sum of squares; the rest went with ranks and conversions.
        clipped: the most that any activation loses to its frozen range, a share of its energy; null where activations cannot be read. A
            LoRA whose weights are clipped is not admitted.
        effect: RMS of what it changes in the U-Net's output over the RMS of that output, the largest of the stored calls.
        golden_effect, others: the same on the golden output's call alone, of it and of the bundle's own adapters.
        product_db: SQNR of all products B A as integers, dB; null where nothing is quantized.
        headroom: the largest weight at which nothing is clipped, at normalised slots the largest that was tried with no activation cut
            off; null where there is no bound.
        checked, unchecked: what was looked at and what was not, a line each.
        seconds, peak_ram_bytes: of the process that admitted it.
    """

    tasks: tuple[str, ...] = ()
    rank: int
    bits: int
    size_bytes: int
    applied: float
    clipped: float | None
    effect: float
    golden_effect: float
    others: dict[str, float]
    product_db: float | None
    headroom: float | None
    notes: tuple[str, ...]
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]
    seconds: float
    peak_ram_bytes: int


class Uploaded(msgspec.Struct, frozen=True):
    """The adapter that was sent; where it came as a LoRA file, what was measured of it."""

    name: str
    verdict: Verdict | msgspec.UnsetType = msgspec.UNSET


class Named(msgspec.Struct, frozen=True):
    """The adapter that something was done to."""

    name: str


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the server takes requests.

    Args:
        notes: what went wrong with installed adapters, one line each.
    """

    status: Literal["ok", "stopping"]
    version: str
    bundle: str
    engine: str
    queued: int
    running: int
    notes: tuple[str, ...] = ()


def encoded(body: msgspec.Struct) -> bytes:
    """A body as JSON, which has no number for infinity and none: they would arrive as if nothing had been said.

    Raises:
        UsageError: something in it is neither text nor a finite number.
    """
    for name, value in msgspec.structs.asdict(body).items():
        if isinstance(value, float | np.floating) and not math.isfinite(value):
            raise UsageError(mismatch(name, "a finite number", value, "choose one, or leave it out"))
        if isinstance(value, bytes) and name not in _PICTURES:  # JSON has none: it would arrive as a text of base64
            raise UsageError(mismatch(name, "a text", "bytes", "decode it"))
    try:
        return msgspec.json.encode(body, enc_hook=_plain)
    except UnicodeEncodeError as error:
        raise UsageError(mismatch("request", "text in UTF-8", repr(error.object[:60]), "write it again")) from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise UsageError(mismatch("request", "texts and numbers", type(value).__name__, "see QuadPipeline"))


def error_body(error: QuadError) -> ErrorBody:
    """An error as it is told: by the class of the tree that it is, or is one of."""
    return ErrorBody(str(error), next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _KINDS))


def as_exception(body: ErrorBody) -> QuadError:
    """The error that a body tells of, of the class it had on the other side."""
    return _KINDS.get(body.kind, QuadError)(body.error)
