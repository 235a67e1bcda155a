"""`bundle.json` and `adapter.json`: what ships, how to run it, and the digests of everything."""

from __future__ import annotations

from typing import Literal

import msgspec

from quad.core.digests import digest

FORMAT_VERSION = 1
BUNDLE_FILE = "bundle.json"
SLOTS_FILE = "slots.json"
PROFILE_FILE = "profile.json"
TOKENIZER_FILE = "tokenizer/tokenizer.json"


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One shipped file."""

    sha256: str
    size_bytes: int


class Component(msgspec.Struct, frozen=True):
    """One graph of the pipeline; `file` is its entry among the bundle's files."""

    file: str
    data_files: tuple[str, ...] = ()


class NoiseSchedule(msgspec.Struct, frozen=True):
    """The diffusion schedule the base was trained with, in diffusers' words."""

    steps: int = 1000
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    rescale_zero_snr: bool = True
    prediction: Literal["epsilon", "v_prediction", "sample"] = "v_prediction"


class OlssTable(msgspec.Struct, frozen=True):
    """A solved OLSS sampler. Source: method.md section 6.

    Args:
        timesteps: the kept timesteps, n entries.
        w: weight of the initial noise for each step, n entries.
        v: weights of the model outputs so far, row k has k + 1 entries.
    """

    timesteps: tuple[int, ...]
    w: tuple[float, ...]
    v: tuple[tuple[float, ...], ...]


class SamplerSpec(msgspec.Struct, frozen=True):
    """Which sampler a task uses; `olss` holds the table where kind is `olss`."""

    kind: Literal["euler", "ddim", "lcm", "olss"]
    steps: int
    olss: OlssTable | None = None


class TaskSpec(msgspec.Struct, frozen=True):
    """How one task conditions the graph.

    Args:
        adapter: the adapter it needs, None for the base itself.
        sampler: kind and number of steps.
        condition: where the condition latent comes from: `none` (zeros), `image`, or `masked-image` (the hole painted grey).
        mask: `ones` (all is made anew), `zeros` (edit the given picture), or `input` (the user's mask).
        guidance: classifier-free guidance scale, 1.0 is off.
    """

    adapter: str | None
    sampler: SamplerSpec
    condition: Literal["none", "image", "masked-image"]
    mask: Literal["ones", "zeros", "input"]
    guidance: float = 1.0


class LatentSpec(msgspec.Struct, frozen=True):
    """The latent space: `channels`, picture pixels per latent pixel, and `z_model = (z_vae - shift) * scale` per channel."""

    channels: int
    factor: int
    scale: tuple[float, ...]
    shift: tuple[float, ...]


class TextSpec(msgspec.Struct, frozen=True):
    """The text encoder's input: tokens per prompt, and the id that fills the rest."""

    length: int
    pad_id: int
    hidden: int


class AdapterManifest(msgspec.Struct, frozen=True):
    """`adapter.json`: one adapter as shipped.

    Args:
        tasks: what the adapter is for; an OLSS table belongs to the adapter, so it travels here.
        parents: digests by name: `source`, `slots`, `profile`, `graph`.
        rank: its own rank before padding, the largest over slots.
        bits: 16 or 8; 32 means float32 weights.
        sha256: digest of `adapter.safetensors`.
    """

    name: str
    format_version: int
    rank: int
    bits: int
    size_bytes: int
    sha256: str
    parents: dict[str, str]
    tasks: dict[str, TaskSpec] = {}


class BundleManifest(msgspec.Struct, frozen=True):
    """`bundle.json`.

    Args:
        files: every shipped file but `bundle.json`, by path inside the bundle.
        engines: engines that can run it, best first.
        requires: what a device must be: `soc` and `htp_arch` where the graphs are a chip's binaries.
        parents: digests of the base model and of the graph's own inputs: `base`, `slots`, `profile`, `graph`.
        sha256: the seal, see `seal`; written last.
    """

    format_version: int
    name: str
    target: str
    precision: str
    size: int
    components: dict[str, Component]
    files: dict[str, FileEntry]
    adapters: tuple[str, ...]
    tasks: dict[str, TaskSpec]
    schedule: NoiseSchedule
    latent: LatentSpec
    text: TextSpec
    engines: tuple[str, ...]
    parents: dict[str, str]
    quad_version: str
    requires: dict[str, str] | msgspec.UnsetType = msgspec.UNSET  # unset, it leaves no trace in the JSON: older bundles keep their seal
    sha256: str = ""


def seal(manifest: BundleManifest) -> BundleManifest:
    """The manifest with its own digest in `sha256`: SHA-256 of its canonical JSON while that field is empty."""
    empty = msgspec.structs.replace(manifest, sha256="")
    return msgspec.structs.replace(empty, sha256=digest(empty))
