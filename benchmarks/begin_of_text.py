"""The begin-of-text token in cross-attention: what an outlier there costs the other tokens where all share one encoding.

    python -m benchmarks.begin_of_text BUNDLE [--factor 1 --factor 10 --factor 50] [--json FILE]

The reference model's text features of four prompts, by the bundle's text encoder, and the weights of its cross-attentions in float64. The
first token is made `factor` times larger, since no CLIP weights were at hand; the input of keys and values is rounded to 8 or 16 bits, with
one encoding for all tokens, or the first token apart. Printed: SQNR of keys and values of the other tokens, means over layers and prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from benchmarks.rig.report import command_line, write_report
from numpy.typing import NDArray
from safetensors.numpy import load_file

from quad.core.decibels import array_sqnr_db
from quad.core.encoding import encode_range
from quad.core.manifest import TOKENIZER_FILE
from quad.runtime.conditioning.tokenizer import Tokenizer
from quad.runtime.pipeline import QuadPipeline
from quad.zoo.reference import reference_dir

PROMPTS = (
    "a big red house in the middle on grass by day",
    "make it night",
    "a small blue tree on the left on sand by night",
    "remove the car",
)
Array = NDArray[np.float64]


def features(bundle: Path) -> list[Array]:
    """Hidden states `(tokens, width)` of each prompt."""
    pipe = QuadPipeline.from_pretrained(bundle, threads=1)
    tokenizer, encoder = Tokenizer(pipe.bundle.read(TOKENIZER_FILE), pipe.bundle.manifest.text), pipe.graph("text_encoder")
    shape = encoder.inputs.get("embeddings")
    vectors = {} if shape is None else {"embeddings": np.zeros([axis or 1 for axis in shape], np.float32)}
    return [encoder.run({"input_ids": tokenizer(prompt).ids, **vectors})[0].astype(np.float64) for prompt in PROMPTS]


def projections() -> Iterator[tuple[str, Array]]:
    """Weights of the keys and values of each cross-attention."""
    for file in sorted((reference_dir() / "unet").glob("*.safetensors")):
        for name, weight in load_file(file).items():
            if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
                yield name.split(".")[-2], weight.astype(np.float64)


def rounded(values: Array, ranged: Array, bits: int) -> Array:
    """Values in the encoding of another array's range."""
    encoding = encode_range(float(ranged.min()), float(ranged.max()), bits=bits, signed=False, symmetric=False)
    return encoding.dequantize(encoding.quantize(values)).astype(np.float64)


def figures(prompts: Sequence[Array], factor: float, bits: int) -> dict[str, tuple[float, float]]:
    """Projection -> SQNR in dB with one encoding, and with the first token apart."""
    scaled = [np.concatenate([hidden[:1] * factor, hidden[1:]]) for hidden in prompts]
    everything, others = np.concatenate(scaled), np.concatenate([hidden[1:] for hidden in scaled])
    decibels: dict[str, list[tuple[float, float]]] = {}
    for kind, weight in projections():
        for hidden in scaled:
            rest = hidden[1:]
            one, apart = (array_sqnr_db(rest @ weight.T, rounded(rest, ranged, bits) @ weight.T) for ranged in (everything, others))
            decibels.setdefault(kind, []).append((one, apart))
    return {
        kind: (float(np.mean([one for one, _ in pairs])), float(np.mean([apart for _, apart in pairs]))) for kind, pairs in decibels.items()
    }


def main() -> None:
    """Print the figures."""
    parser = command_line(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--factor", type=float, action="append")
    options = parser.parse_args()
    prompts = features(options.bundle)
    first, rest = (np.concatenate([hidden[part] for hidden in prompts]) for part in (slice(0, 1), slice(1, None)))
    ratios: dict[str, float] = {}
    for kind in ("to_k", "to_v"):
        largest = [np.abs(first @ weight.T).max() / np.abs(rest @ weight.T).max() for name, weight in projections() if name == kind]
        ratios[kind] = float(np.mean(largest))
        print(f"{kind}: the first token's largest value is {ratios[kind]:.2f} of the others'")
    rows = []
    for factor in options.factor or (1.0, 10.0, 50.0):
        for bits in (8, 16):
            decibels = figures(prompts, factor, bits)
            shown = ", ".join(f"{kind} one {one:.1f} dB, apart {apart:.1f} dB" for kind, (one, apart) in decibels.items())
            print(f"{factor:g} times, {bits} bits: {shown}")
            rows.append({"factor": factor, "bits": bits, "sqnr_db": decibels})
    write_report(options.json, {"ratios": ratios, "rows": rows})


if __name__ == "__main__":
    main()
