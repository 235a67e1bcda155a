"""`conformance.json` and the tensors beside it: inputs that any runtime can be fed with, and what it shall answer within which tolerance.

Whatever is larger than a few dozen numbers is compared as means over blocks, so that the files stay small at any picture size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from quad.core.digests import canonical_json
from quad.core.errors import CompatibilityError, VerificationError, mismatch
from quad.core.manifest import CONFORMANCE_FILE, CONFORMANCE_TENSORS_FILE, SamplerSpec
from quad.runtime.bundle import Bundle

VECTORS_VERSION = 1
GRID = 8  # blocks along each of an answer's two last axes
Values = tuple[float, ...]


class NoiseVector(msgspec.Struct, frozen=True, kw_only=True):
    """The first noise of a seed, to the bit.

    Args:
        sha256: of its float32 numbers, little-endian, in order of the axes.
        first: the first of them.
    """

    seed: int
    shape: tuple[int, ...]
    sha256: str
    first: Values


class TextVector(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt, its tokens, and the hidden states that the denoiser reads, of the base.

    Args:
        prompt_syntax: as `QuadPipeline` takes it.
        ids: of each chunk.
        weights: of each chunk's tokens, 1 where the prompt says nothing.
        values: block means of the hidden states `(1, 1, context, width)`.
        tolerance: of `values`, see `distance`.
    """

    prompt: str
    prompt_syntax: str
    ids: tuple[tuple[int, ...], ...]
    weights: tuple[Values, ...]
    values: Values
    tolerance: float


class CallVector(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a graph.

    Args:
        graph: its name, see `quad.core.picture_size.graph_name`.
        adapter: bound with weight 1; unset for the base.
        inputs: name of the graph's input -> name of a tensor beside.
        values: block means of the output.
    """

    graph: str
    adapter: str | msgspec.UnsetType = msgspec.UNSET
    inputs: dict[str, str]
    values: Values
    tolerance: float


class SamplerVector(msgspec.Struct, frozen=True, kw_only=True):
    """A sampler's run from noise, its network replaced by noise: the generator of `seed` draws what the sampler draws, and that of
    `output_seed` the network's outputs, one after the other, all float32 of the noise's shape.

    Args:
        name: as a user names it, or the task that has it.
        timesteps: of the network's calls.
        states: the tensor beside with the state after each call, float32 `(calls, *shape)`.
        tolerance: largest difference of one number.
    """

    name: str
    spec: SamplerSpec
    shape: tuple[int, ...]
    seed: int
    output_seed: int
    timesteps: Values
    states: str
    tolerance: float


class PictureVector(msgspec.Struct, frozen=True, kw_only=True):
    """A whole picture of a task with its own adapter, from prompt to pixels.

    Args:
        steps: as `num_inference_steps`.
        image, mask: tensors beside, uint8 `(H, W, 3)` and `(H, W)`; unset where the task takes none.
        values: block means of the picture `(1, 3, H, W)` in [0, 1].
    """

    task: str
    prompt: str
    seed: int
    steps: int
    image: str | msgspec.UnsetType = msgspec.UNSET
    mask: str | msgspec.UnsetType = msgspec.UNSET
    values: Values
    tolerance: float


class Vectors(msgspec.Struct, frozen=True, kw_only=True):
    """`conformance.json`. `grid` is the number of blocks along each axis of means, fewer where there are fewer numbers."""

    format_version: int = VECTORS_VERSION
    grid: int = GRID
    noise: tuple[NoiseVector, ...] = ()
    texts: tuple[TextVector, ...] = ()
    calls: tuple[CallVector, ...] = ()
    samplers: tuple[SamplerVector, ...] = ()
    pictures: tuple[PictureVector, ...] = ()


@dataclass(frozen=True)
class ConformanceVectors:
    """The vectors and the tensors that they name."""

    vectors: Vectors
    tensors: Mapping[str, NDArray[Any]]

    def files(self) -> dict[str, bytes]:
        """Name in the bundle -> content."""
        return {
            CONFORMANCE_FILE: canonical_json(self.vectors),
            CONFORMANCE_TENSORS_FILE: save({name: np.ascontiguousarray(array) for name, array in self.tensors.items()}),
        }

    def tensor(self, name: str) -> NDArray[Any]:
        """One of the tensors beside.

        Raises:
            VerificationError: there is none of that name.
        """
        if name not in self.tensors:
            raise VerificationError(mismatch(CONFORMANCE_TENSORS_FILE, f"a tensor {name}", "none", "build the bundle again"))
        return self.tensors[name]


def read_vectors(bundle: Bundle) -> ConformanceVectors:
    """Of a bundle that has some.

    Raises:
        CompatibilityError: it is of an older build and has none. VerificationError: they are damaged, or of another format.
    """
    where = f"bundle {bundle.name!r}"
    if CONFORMANCE_FILE not in bundle.manifest.files:
        state = "none, it is of an older build or merged"
        raise CompatibilityError(mismatch(where, f"conformance vectors ({CONFORMANCE_FILE})", state, "build it again"))
    try:
        vectors = msgspec.json.decode(bundle.read(CONFORMANCE_FILE), type=Vectors)
        tensors = load(bundle.read(CONFORMANCE_TENSORS_FILE))
    except (msgspec.MsgspecError, SafetensorError, UnicodeDecodeError) as error:
        raise VerificationError(mismatch(where, "conformance vectors", f"something else ({error})", "build it again")) from error
    if vectors.format_version != VECTORS_VERSION:
        found_version = f"version {vectors.format_version}"
        raise VerificationError(mismatch(where, f"conformance vectors of version {VECTORS_VERSION}", found_version, "update quad"))
    return ConformanceVectors(vectors, tensors)


def distance(values: Values, answer: NDArray[np.float64]) -> float:
    """Largest difference of one value over the RMS of all; infinite where there is another number of them, or NaN among them."""
    expected = np.asarray(values)
    if expected.shape != answer.shape or not np.isfinite(answer).all():
        return float("inf")
    return float(np.abs(expected - answer).max(initial=0.0) / max(np.sqrt(np.square(expected).mean()), 1e-12))
