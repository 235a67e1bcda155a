"""`bundle.json` and `adapter.json`: what ships, how to run it, and the digests of everything."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from quad.core.digests import digest
from quad.core.picture_size import PictureSize, Pixels, square
from quad.core.ports import Sinusoid
from quad.core.profile import MOST_GROUPS
from quad.core.sampling import MOST_STEPS as MOST_STEPS
from quad.core.sampling import AdapterDefaults, SamplerSettings
from quad.core.sampling import OlssTable as OlssTable
from quad.core.sampling import SamplerSpec as SamplerSpec

FORMAT_VERSION = 1
MOST_SIZES = 64
# Height and width of the original picture, top and left of the crop, height and width of the target: what a model is told of a size.
SIZE_NUMBERS = 6
# A name that can be a file's, on any system and on one line.
AdapterName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]
BUNDLE_FILE = "bundle.json"
SLOTS_FILE = "slots.json"
PROFILE_FILE = "profile.json"
TOKENIZER_FILE = "tokenizer/tokenizer.json"
# Calls of the U-Net to try an adapter on, and what a build wrote into the U-Net beside its encodings; older bundles have neither.
PROBES_FILE = "probes.safetensors"
CORRECTIONS_FILE = "corrections.safetensors"
# What 4 bits took from the base, in the slots' last rank channels; where `slots.json` says that there are some.
BASE_CORRECTION_FILE = "base_correction.safetensors"
# Textual inversions that came with the adapters: word -> float32 (n, hidden); absent where none did.
EMBEDDINGS_FILE = "embeddings.safetensors"
# Inputs and answers that any runtime can be compared with, and the tensors that they name.
CONFORMANCE_FILE = "conformance.json"
CONFORMANCE_TENSORS_FILE = "conformance.safetensors"


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One shipped file."""

    sha256: str
    size_bytes: int


class GraphFiles(msgspec.Struct, frozen=True):
    """The files of a graph, entries among the bundle's."""

    file: str
    data_files: tuple[str, ...] = ()


class SizedGraphs(GraphFiles, frozen=True, kw_only=True):
    """A graph for one size of pictures or several.

    Args:
        file, data_files: its entries among the bundle's files, for the bundle's first size.
        sizes: `WIDTHxHEIGHT` -> the graph for that further size; unset where there is none, or the size does not matter.
    """

    sizes: dict[str, GraphFiles] | msgspec.UnsetType = msgspec.UNSET

    @property
    def graphs(self) -> tuple[GraphFiles, ...]:
        """Of all sizes, the first one's first."""
        return (self, *(self.sizes or {}).values())


class Component(SizedGraphs, frozen=True, kw_only=True):
    """One graph of the pipeline, for one size of pictures or several.

    Args:
        file, data_files, sizes: of the first group of adapters.
        identity: digest of what its compiler was given, and for which chip, where that does not give the same bytes each time; UNSET where
            the files themselves are the graph.
        groups: the graphs of further groups of adapters, in the order of the profile's; unset where there is one group, or the graph is the
            same in all.
    """

    identity: str | msgspec.UnsetType = msgspec.UNSET
    groups: tuple[SizedGraphs, ...] | msgspec.UnsetType = msgspec.UNSET

    @property
    def files(self) -> tuple[str, ...]:
        """All of them, each once, graphs before their weights."""
        graphs = [graph for group in (self, *(self.groups or ())) for graph in group.graphs]
        return tuple(dict.fromkeys((*(graph.file for graph in graphs), *(name for graph in graphs for name in graph.data_files))))

    def of(self, size: PictureSize | None, group: int = 0) -> GraphFiles:
        """The graph for a further size, None for the first, and a group of adapters, counted from 0; a graph that has none for it does not
        hang on it."""
        graphs: SizedGraphs = self.groups[group - 1] if group and self.groups else self
        return graphs if size is None else (graphs.sizes or {}).get(str(size), graphs)


class NoiseSchedule(msgspec.Struct, frozen=True, kw_only=True):
    """The diffusion schedule the base was trained with, in diffusers' words.

    Args:
        steps: training timesteps.
        beta_schedule: how the variance added grows from `beta_start` to `beta_end`; `squaredcos_cap_v2` reads neither.
        rescale_zero_snr: rescaled so that nothing of the signal is left at the last timestep.
        prediction: what the network answers with.
        trained_betas: the variances themselves, one per timestep, in place of `beta_schedule`.
    """

    steps: int = 1000
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    rescale_zero_snr: bool = True
    prediction: Literal["epsilon", "v_prediction", "sample"] = "v_prediction"
    trained_betas: tuple[float, ...] | msgspec.UnsetType = msgspec.UNSET


class TaskSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How one task conditions the graph.

    Args:
        adapter: the adapter it needs, None for the base itself.
        sampler: kind and number of steps.
        condition: where the condition latent comes from: `none` (zeros), `image`, `masked-image` (the hole painted grey, the mask taken by
            its largest value), or `cut-image` (0 in the hole, the mask taken at every n-th pixel: as Stable Diffusion's are trained).
        mask: `ones` (all is made anew), `zeros` (edit the given picture), or `input` (the user's mask).
        guidance: classifier-free guidance scale, 1.0 is off.
        strength: begin at the given picture, noised so far that this share of the steps is left; unset, begin at noise.
        blend: outside of the mask the state is the given picture's, noised alike, after every step.
        image_guidance: a second guidance, away from what the network makes without the condition latent; unset, there is none.
        guidance_interval: shares of the noise schedule, 0 is noise and 1 the picture, between which guidance counts; unset, everywhere.
    """

    adapter: str | None
    sampler: SamplerSpec
    condition: Literal["none", "image", "masked-image", "cut-image"]
    mask: Literal["ones", "zeros", "input"]
    guidance: float = 1.0
    strength: float | msgspec.UnsetType = msgspec.UNSET
    blend: bool | msgspec.UnsetType = msgspec.UNSET
    image_guidance: float | msgspec.UnsetType = msgspec.UNSET
    guidance_interval: tuple[float, float] | msgspec.UnsetType = msgspec.UNSET

    @property
    def reads_picture(self) -> bool:
        """Whether the user has to give one."""
        cut = self.condition == "cut-image" and self.mask == "input"
        return self.condition in ("image", "masked-image") or cut or self.strength is not msgspec.UNSET or bool(self.blend)


Beside = Literal["condition", "raw-condition", "mask"]


class LatentSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The latent space: `channels`, picture pixels per latent pixel, and `z_model = (z_vae - shift) * scale` per channel.

    Args:
        beside: what follows the latent in the U-Net's `sample`, in order: the condition latent as `z_model` or raw as `z_vae`, and the
            mask; unset, condition and mask where the graph has so many channels, else nothing.
    """

    channels: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    factor: Annotated[int, msgspec.Meta(ge=1, le=256)]
    scale: tuple[float, ...]
    shift: tuple[float, ...]
    beside: tuple[Beside, ...] | msgspec.UnsetType = msgspec.UNSET

    def grid(self, size: PictureSize) -> tuple[int, int]:
        """Rows and columns of latent pixels of a picture."""
        return size.height // self.factor, size.width // self.factor


class LatentPreview(msgspec.Struct, frozen=True):
    """A linear map from a model latent to colours in [-1, 1], near to what the decoder makes of it.

    Args:
        weights: red, green and blue by latent channel, 3 rows of `channels`.
        bias: red, green and blue of an empty latent.
    """

    weights: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]
    bias: tuple[float, float, float]


class TextSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The text encoder's input: tokens per prompt, and the id that fills the rest; and its output's width.

    Args:
        first_vector_id: the smallest id that is no token: ids from it on stand for rows of the graph's input `embeddings`
            `(1, length, hidden)`, where textual inversions enter; unset, the graph has no such input.
        chunks: how many times `length` tokens the denoiser reads; rows of zeros fill the context of a shorter prompt, and are not
            attended to; unset, it is once, and every row is read.
        clip_skip: which layer from the last one gives the output, as A1111 counts: 2 leaves out one layer; unset, none is left out.
        pooled: how many numbers of the prompt as a whole follow its hidden states, in further rows of the text encoder's output, filled up
            with zeros; unset, there are none.
        sizes: embedding of each of six numbers that say the picture's size, in further rows that the denoiser reads behind those; unset,
            it is told no size.
        zeros_for_empty: an empty negative prompt is rows of zeros, and not what the text encoder makes of no words; unset, it is not.
    """

    length: Annotated[int, msgspec.Meta(ge=1, le=2**16)]
    pad_id: Annotated[int, msgspec.Meta(ge=0, le=2**31)]
    hidden: Annotated[int, msgspec.Meta(ge=1, le=2**20)]
    first_vector_id: Annotated[int, msgspec.Meta(ge=1, le=2**31)] | msgspec.UnsetType = msgspec.UNSET
    clip_skip: Annotated[int, msgspec.Meta(ge=2, le=2**10)] | msgspec.UnsetType = msgspec.UNSET

    chunks: Annotated[int, msgspec.Meta(ge=2, le=64)] | msgspec.UnsetType = msgspec.UNSET
    pooled: Annotated[int, msgspec.Meta(ge=1, le=2**20)] | msgspec.UnsetType = msgspec.UNSET
    sizes: Sinusoid | msgspec.UnsetType = msgspec.UNSET
    zeros_for_empty: bool | msgspec.UnsetType = msgspec.UNSET

    @property
    def most_chunks(self) -> int:
        """Chunks of a prompt that are read at most."""
        return 1 if self.chunks is msgspec.UNSET else self.chunks

    @property
    def context(self) -> int:
        """Tokens that the denoiser reads."""
        return self.length * self.most_chunks

    @property
    def pooled_rows(self) -> int:
        """Rows that the numbers of the prompt as a whole take."""
        return 0 if self.pooled is msgspec.UNSET else -(-self.pooled // self.hidden)

    @property
    def size_rows(self) -> int:
        """Rows that the embedding of the picture's size takes."""
        return 0 if self.sizes is msgspec.UNSET else -(-SIZE_NUMBERS * self.sizes.channels // self.hidden)

    @property
    def rows(self) -> int:
        """Rows of `encoder_hidden_states`: tokens, the prompt as a whole, sizes."""
        return self.context + self.pooled_rows + self.size_rows

    @property
    def skipped_layers(self) -> int:
        """Layers of the text encoder that are left out."""
        return 0 if self.clip_skip is msgspec.UNSET else self.clip_skip - 1


class Golden(msgspec.Struct, frozen=True):
    """The answer of the U-Net with the adapter to one stored probe, coarsely: enough to tell it from another adapter.

    Args:
        probe: number of the probe among the bundle's.
        values: means of the output over blocks, see `quad.runtime.golden_outputs`.
        tolerance: largest difference of one value that engines and numbers of threads make.
    """

    probe: Annotated[int, msgspec.Meta(ge=0, le=2**10)]
    values: Annotated[tuple[float, ...], msgspec.Meta(max_length=2**16)]
    tolerance: Annotated[float, msgspec.Meta(ge=0)]


class AdapterQuality(msgspec.Struct, frozen=True, kw_only=True):
    """How well an adapter came into the frozen encodings, as it was measured when it was packed; what was not measured is unset.

    Args:
        product_db: SQNR of the products B A over all slots; unset where training has moved them on purpose.
        energy: least share of a slot's update that is left after conversion and cutting to its rank.
        effect: RMS of what it changes in the U-Net's output over the RMS of that output, the largest over the stored probes.
        lost: largest share of an activation's energy that its range cut off, over the stored probes and some calls of its own.
        output_db, effect_db, effect_gain: output with the adapter, and what it changes in it, against the full-precision model.
        calls: of the U-Net that those three were measured on.
    """

    product_db: float | msgspec.UnsetType = msgspec.UNSET
    energy: float | msgspec.UnsetType = msgspec.UNSET
    effect: float | msgspec.UnsetType = msgspec.UNSET
    lost: float | msgspec.UnsetType = msgspec.UNSET
    output_db: float | msgspec.UnsetType = msgspec.UNSET
    effect_db: float | msgspec.UnsetType = msgspec.UNSET
    effect_gain: float | msgspec.UnsetType = msgspec.UNSET
    calls: int | msgspec.UnsetType = msgspec.UNSET


class AdapterManifest(msgspec.Struct, frozen=True, kw_only=True):
    """`adapter.json`: one adapter as shipped.

    Args:
        tasks: what the adapter is for; an OLSS table belongs to the adapter, so it travels here.
        parents: digests by name: `source`, `slots`, `profile`, `graph`.
        rank: its own rank before padding, the largest over slots.
        bits: 16 or 8; 32 means float32 weights.
        sha256: digest of `adapter.safetensors`.
        headroom: the largest weight before an entry of its weighted B is clipped, of normalised slots the largest that its admission tried
            without any activation being cut off; unset where there is no such bound, and in files of older builds.
        golden, quality: unset in adapters of older builds, and where they were not measured.
        defaults: how it is meant to be run, unset where nothing was said; in tasks of its own it is in their sampler already.
        group: whose graph it runs in, of the bundle's groups of adapters, counted from 0; unset for the first.
    """

    name: AdapterName
    format_version: int
    rank: Annotated[int, msgspec.Meta(ge=0, le=2**16)]
    bits: Literal[8, 16, 32]
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]
    sha256: str
    parents: dict[str, str]
    tasks: dict[str, TaskSpec] = {}
    headroom: float | msgspec.UnsetType = msgspec.UNSET
    golden: Golden | msgspec.UnsetType = msgspec.UNSET
    quality: AdapterQuality | msgspec.UnsetType = msgspec.UNSET
    defaults: AdapterDefaults | msgspec.UnsetType = msgspec.UNSET
    group: Annotated[int, msgspec.Meta(ge=0, lt=MOST_GROUPS)] | msgspec.UnsetType = msgspec.UNSET

    @property
    def group_number(self) -> int:
        """Of its group among the bundle's, counted from 0."""
        return self.group or 0


class MergedAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that is in a bundle's weights.

    Args:
        sha256: digest of its tensors, as its own manifest had it.
        parents: as its own manifest had them.
        defaults: how it is meant to be run; sampler and guidance are in the bundle's tasks already.
    """

    name: AdapterName
    weight: float
    sha256: str
    parents: dict[str, str]
    defaults: AdapterDefaults | msgspec.UnsetType = msgspec.UNSET


class Bf16Proof(msgspec.Struct, frozen=True, kw_only=True):
    """How near the denoiser comes to the float network where an engine computes in bf16 what is float, measured when it was built.

    Args:
        output_db: SQNR of its output in bf16, the least over the base and all adapters.
        f32_db: the same in f32.
    """

    engine: str
    output_db: float
    f32_db: float


class BundleManifest(msgspec.Struct, frozen=True, kw_only=True):
    """`bundle.json`.

    Args:
        size: width of the pictures, and their height unless `sizes` says another.
        sizes: width and height of all that there are graphs for, the first goes where none is asked for; unset, `size` each way alone.
        files: every shipped file but `bundle.json`, by path inside the bundle.
        engines: engines that can run it, best first.
        requires: what a device must be: `soc` and `htp_arch` where the graphs are a chip's binaries.
        parents: digests of the base model and of the graph's own inputs: `base`, `slots`, `profile`, `graph`; and of the `bundle` whose
            adapters were merged, its seal.
        merged: adapters that are in the weights; unset where none is.
        preview: colours of a latent on its way; unset in older bundles, and where the build saw no picture.
        samplers: settings by sampler name, where the model's config states others than follow from its own sampler.
        chips: chip -> what was done for it when the bundle was built, in the words of `quad.core.chips`; unset where a bundle is for one
            chip, which `requires` names, or for none.
        bf16: engines that the denoiser may run in bf16 on, where a processor has it; unset where none was proven.
        sha256: the seal, see `seal`; written last.
    """

    format_version: int
    name: str
    target: str
    precision: str
    size: Pixels
    components: dict[str, Component]
    files: dict[str, FileEntry]
    adapters: tuple[AdapterName, ...]
    tasks: dict[str, TaskSpec]
    schedule: NoiseSchedule
    latent: LatentSpec
    text: TextSpec
    engines: tuple[str, ...]
    parents: dict[str, str]
    quad_version: str
    # Unset, these leave no trace in the JSON: older bundles keep their seal.
    requires: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    sizes: Annotated[tuple[PictureSize, ...], msgspec.Meta(min_length=1, max_length=MOST_SIZES)] | msgspec.UnsetType = msgspec.UNSET
    samplers: dict[str, SamplerSettings] | msgspec.UnsetType = msgspec.UNSET
    preview: LatentPreview | msgspec.UnsetType = msgspec.UNSET
    merged: tuple[MergedAdapter, ...] | msgspec.UnsetType = msgspec.UNSET
    chips: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    bf16: tuple[Bf16Proof, ...] | msgspec.UnsetType = msgspec.UNSET
    sha256: str = ""

    @property
    def picture_sizes(self) -> tuple[PictureSize, ...]:
        """Width and height of the pictures that it can make, the first is that of a call that asks for none."""
        return (square(self.size),) if self.sizes is msgspec.UNSET else self.sizes

    @property
    def picture_size(self) -> PictureSize:
        """The first of its sizes."""
        return self.picture_sizes[0]


def seal(manifest: BundleManifest) -> BundleManifest:
    """The manifest with its own digest in `sha256`: SHA-256 of its canonical JSON while that field is empty."""
    empty = msgspec.structs.replace(manifest, sha256="")
    return msgspec.structs.replace(empty, sha256=digest(empty))
