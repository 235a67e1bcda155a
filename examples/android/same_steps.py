"""A picture from a bundle for LiteRT, step by step, with NumPy and ai_edge_litert alone: what the Kotlin sample beside it does.

    python examples/android/same_steps.py BUNDLE --prompt "a big red house by day" [--adapter NAME] [--seed 0] [--steps 16] -o house.png
    python examples/android/same_steps.py BUNDLE --verify

Text to image with the sampler ddim; `--verify` runs what it can of the bundle's conformance vectors (docs/formats.md). Nothing of quad is
imported: this is for those who write the same in another language.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

COMPONENTS = ("text_encoder", "unet", "vae_encoder", "vae_decoder")
DTYPES = {"F32": np.float32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "I64": np.int64}
BETWEEN_WORDS = {"Split": None, "Whitespace": r"\s+"}


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """A safetensors file: eight bytes of length, a JSON header, and the numbers."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def encode(port: dict[str, Any], values: np.ndarray) -> np.ndarray:
    """Numbers as a graph's input takes them, as `ports.json` says: the timestep's waves, then integers of a scale."""
    if (waves := port.get("sinusoid")) is not None:
        half = waves["channels"] // 2
        exponent = np.float32(-np.log(waves["period"])) * np.arange(half, dtype=np.float32) / np.float32(half - waves["shift"])
        angle = values.astype(np.float32)[:, None] * np.exp(exponent)[None]
        pair = (np.cos(angle), np.sin(angle)) if waves["cosine_first"] else (np.sin(angle), np.cos(angle))
        values = np.concatenate(pair, axis=1).astype(np.float32)
    if (encoding := port.get("encoding")) is None:
        return values.astype(port["dtype"])
    largest = encoding.get("largest", np.iinfo(port["dtype"]).max)
    least = -largest if encoding["symmetric"] else np.iinfo(port["dtype"]).min
    integers = np.rint(values.astype(np.float32) / np.float32(encoding["scale"][0])) + np.float32(encoding["zero_point"][0])
    return np.clip(integers, least, largest).astype(port["dtype"])


def decode(port: dict[str, Any], values: np.ndarray) -> np.ndarray:
    """A graph's output as float32."""
    if (encoding := port.get("encoding")) is None:
        return values.astype(np.float32)
    return (values.astype(np.int64) - encoding["zero_point"][0]).astype(np.float32) * np.float32(encoding["scale"][0])


class Graph:
    """One component: `model.tflite`, and how floats enter and leave it in `ports.json`."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self.ports = json.loads((folder / "ports.json").read_text())
        self.interpreter = Interpreter(str(folder / "model.tflite"), num_threads=threads)
        self.interpreter.allocate_tensors()
        self.inputs = {entry["name"]: entry for entry in self.interpreter.get_input_details()}
        (self.output,) = self.interpreter.get_output_details()

    def bind(self, tensors: dict[str, np.ndarray]) -> None:
        """Slots: an adapter's integers as they are. They stay until others are bound."""
        for name, array in tensors.items():
            self.interpreter.set_tensor(self.inputs[name]["index"], array)

    def run(self, **inputs: np.ndarray) -> np.ndarray:
        for name, array in inputs.items():
            self.interpreter.set_tensor(self.inputs[name]["index"], encode(self.ports["inputs"][name], array))
        self.interpreter.invoke()
        return decode(self.ports["outputs"][self.output["name"]], self.interpreter.get_tensor(self.output["index"]))


@dataclass(frozen=True)
class Bundle:
    """What the steps need of a bundle's JSON files."""

    root: Path
    manifest: dict[str, Any]
    slots: dict[str, Any]

    def graph(self, component: str, threads: int = 1, **options: Any) -> Graph:
        return Graph(self.root / component, threads)


def open_bundle(root: Path) -> Bundle:
    manifest = json.loads((root / "bundle.json").read_text())
    if manifest["format_version"] != 1 or "litert" not in manifest["engines"]:
        raise SystemExit(f"{root}: expected a bundle of format 1 for litert; build it with --target litert")
    return Bundle(root, manifest, json.loads((root / "slots.json").read_text()))


def token_ids(bundle: Bundle, prompt: str) -> np.ndarray:
    """Token ids int64 (1, length) of a tokenizer of whole words; others need the library `tokenizers`."""
    tokenizer, text = json.loads((bundle.root / "tokenizer/tokenizer.json").read_text()), bundle.manifest["text"]
    model, before = tokenizer["model"], tokenizer["pre_tokenizer"]
    if model["type"] != "WordLevel" or before["type"] not in BETWEEN_WORDS:
        raise SystemExit(f"tokenizer: expected one of whole words, found {model['type']}; use the library tokenizers")
    pattern = BETWEEN_WORDS[before["type"]] or before["pattern"]["Regex"]
    words = [word for word in re.split(pattern, prompt.lower()) if word]
    vocabulary = model["vocab"]
    ids = [vocabulary.get(word, vocabulary[model["unk_token"]]) for word in words]
    frame = (tokenizer.get("post_processor") or {}).get("single", [{"Sequence": {}}])
    place = next(index for index, part in enumerate(frame) if "Sequence" in part)
    first, last = ([vocabulary[part["SpecialToken"]["id"]] for part in side] for side in (frame[:place], frame[place + 1 :]))
    ids = [*first, *ids[: text["length"] - len(first) - len(last)], *last]
    return np.array([ids + [text["pad_id"]] * (text["length"] - len(ids))])


def adapter_inputs(bundle: Bundle, adapter: str | None, component: str) -> dict[str, np.ndarray]:
    """Every slot input of a graph: the adapter's tensors, zeros up to the slot's rank, and zeros where it has none."""
    tensors = {} if adapter is None else read_tensors(bundle.root / "adapters" / adapter / "adapter.safetensors")
    inputs, scales = {}, []
    for slot in bundle.slots["slots"]:
        if slot.get("component", "unet") != component:
            continue
        path, rank, conv = slot["path"], slot["rank"], slot["kind"] == "conv"
        a = np.zeros((rank, slot["in_features"], *(slot["kernel"] if conv else ())), slot["dtype"])
        b = np.zeros((slot["out_features"], rank, *((1, 1) if conv else ())), slot["dtype"])
        scale = np.zeros(rank, np.float32)
        if f"{path}.lora_A" in tensors:
            own = len(tensors[f"{path}.lora_A"])
            a[:own], b[:, :own] = tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"]
            scale[:own] = tensors.get(f"{path}.lora_scale", 0)
        inputs |= {f"{path}.lora_A": a, f"{path}.lora_B": b}
        scales.append(scale)
    if scales and bundle.slots.get("mode") == "normalised":
        name, profile = f"{component}.lora_scales", json.loads((bundle.root / "profile.json").read_text())
        encoding = profile["encodings"].get(component, {}).get(name)
        port = {"dtype": f"int{encoding['bits']}" if encoding else "float32", "encoding": encoding}
        inputs[name] = encode(port, np.concatenate(scales))
    return inputs


def signal_shares(schedule: dict[str, Any]) -> np.ndarray:
    """The share of signal variance left at each training timestep, float64."""
    steps, low, high = schedule["steps"], schedule["beta_start"], schedule["beta_end"]
    if "trained_betas" in schedule:
        betas = np.asarray(schedule["trained_betas"], np.float64)
    elif schedule["beta_schedule"] == "linear":
        betas = np.linspace(low, high, steps)
    elif schedule["beta_schedule"] == "scaled_linear":
        betas = np.linspace(low**0.5, high**0.5, steps) ** 2
    else:
        share = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1.0 - share[1:] / share[:-1], 0.999)
    shares = np.cumprod(1.0 - betas)
    if schedule["rescale_zero_snr"]:
        root = np.sqrt(shares)
        shares = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    return shares


def ddim(bundle: Bundle, steps: int, network: Any, noise: np.ndarray) -> np.ndarray:
    """From noise to a clean latent, deterministic; the network sees float32, the sampler computes in float64."""
    schedule = bundle.manifest["schedule"]
    shares, stride = signal_shares(schedule), schedule["steps"] // steps
    x = noise.astype(np.float64)
    for t in (np.arange(schedule["steps"], 0, -schedule["steps"] / steps).round() - 1)[:steps].astype(int):
        signal, rest = np.sqrt(shares[t]), np.sqrt(1.0 - shares[t])
        output = network(x.astype(np.float32), float(t)).astype(np.float64)
        if schedule["prediction"] == "v_prediction":
            clean, eps = signal * x - rest * output, signal * output + rest * x
        elif schedule["prediction"] == "epsilon":
            clean, eps = (x - rest * output) / signal, output
        else:
            clean, eps = output, (x - signal * output) / rest
        share = shares[t - stride] if t >= stride else 1.0
        x = np.sqrt(share) * clean + np.sqrt(1.0 - share) * eps
    return x.astype(np.float32)


def text_to_image(
    bundle: Bundle, prompt: str, *, adapter: str | None = None, steps: int = 16, noise: np.ndarray, threads: int = 1
) -> np.ndarray:
    """Pixels uint8 (H, W, 3) of a prompt."""
    manifest = bundle.manifest
    encoder = bundle.graph("text_encoder", threads)
    encoder.bind(adapter_inputs(bundle, adapter, "text_encoder"))
    guidance = manifest["tasks"].get("text-to-image", {}).get("guidance", 1.0)
    texts = [prompt] if guidance <= 1.0 else ["", prompt]
    features = [text_features(bundle, text, encoder) for text in texts]

    unet = bundle.graph("unet", threads)
    unet.bind(adapter_inputs(bundle, adapter, "unet"))
    # Beside the latent, where the graph has room for it: no condition picture, and a mask of ones (all is made anew).
    channels, (height, width) = unet.inputs["sample"]["shape"][1], noise.shape[2:]
    beside = np.zeros((1, channels - noise.shape[1], height, width), np.float32)
    if "mask" in manifest["latent"].get("beside", ("condition", "mask")):
        beside[:, -1:] = 1

    def network(x: np.ndarray, t: float) -> np.ndarray:
        sample, timestep = np.concatenate([x, beside], axis=1), np.array([t], np.float32)
        sides = [unet.run(sample=sample, timestep=timestep, encoder_hidden_states=text) for text in features]
        return sides[-1] if len(sides) == 1 else sides[0] + np.float32(guidance) * (sides[1] - sides[0])

    latent = ddim(bundle, steps, network, noise)
    image = bundle.graph("vae_decoder", threads).run(latent=latent)
    return np.rint(np.clip((image[0].transpose(1, 2, 0) + 1) * 127.5, 0, 255)).astype(np.uint8)


def first_noise(bundle: Bundle, seed: int) -> np.ndarray:
    """As `quad run --seed` draws it."""
    latent, (width, height) = bundle.manifest["latent"], bundle.manifest.get("sizes", [[bundle.manifest["size"]] * 2])[0]
    shape = (1, latent["channels"], height // latent["factor"], width // latent["factor"])
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def text_features(bundle: Bundle, prompt: str, encoder: Graph) -> np.ndarray:
    """Hidden states float32 (1, context, width) of a prompt."""
    more = {"embeddings": np.zeros(encoder.inputs["embeddings"]["shape"], np.float32)} if "embeddings" in encoder.inputs else {}
    hidden = encoder.run(input_ids=token_ids(bundle, prompt), **more)
    text = bundle.manifest["text"]
    return np.pad(hidden, ((0, 0), (0, text["length"] * text.get("chunks", 1) - hidden.shape[1]), (0, 0)))


def block_means(values: np.ndarray, grid: int) -> np.ndarray:
    """Means over `grid` by `grid` blocks of the two last axes."""
    rows, columns = (np.array_split(np.arange(size), min(grid, size)) for size in values.shape[-2:])
    planes = values.astype(np.float64).reshape(-1, *values.shape[-2:])
    return np.array([plane[row][:, column].mean() for plane in planes for row in rows for column in columns])


def conformance(bundle: Bundle) -> Iterator[tuple[str, float, float]]:
    """Vector, its distance from what the bundle says, and the tolerance; those that these steps know the inputs of."""
    vectors = json.loads((bundle.root / "conformance.json").read_text())
    tensors, grid = read_tensors(bundle.root / "conformance.safetensors"), vectors["grid"]

    def distance(vector: dict[str, Any], answer: np.ndarray) -> float:
        expected = np.array(vector["values"])
        return float(np.abs(expected - block_means(answer, grid).ravel()).max() / np.sqrt(np.square(expected).mean()))

    encoder = bundle.graph("text_encoder")
    encoder.bind(adapter_inputs(bundle, None, "text_encoder"))
    for text in vectors["texts"]:
        if text["prompt_syntax"] == "plain":
            if text["ids"] != token_ids(bundle, text["prompt"]).tolist():
                raise SystemExit(f"tokens of {text['prompt']!r}: expected {text['ids']}")
            yield f"text {text['prompt']!r}", distance(text, text_features(bundle, text["prompt"], encoder)[None]), text["tolerance"]
    graphs: dict[str, Graph] = {}
    for call in vectors["calls"]:
        if (name := call["graph"]) in COMPONENTS:
            graph = graphs.setdefault(name, bundle.graph(name))
            graph.bind(adapter_inputs(bundle, call.get("adapter"), name))
            answer = graph.run(**{key: tensors[stored] for key, stored in call["inputs"].items()})
            yield f"{name} {call.get('adapter', '')}".strip(), distance(call, answer), call["tolerance"]
    for picture in vectors["pictures"]:
        task = bundle.manifest["tasks"][picture["task"]]
        if picture["task"] == "text-to-image" and task["sampler"]["kind"] == "ddim" and not task["sampler"].get("settings"):
            noise = first_noise(bundle, picture["seed"])
            pixels = text_to_image(bundle, picture["prompt"], adapter=task["adapter"], steps=picture["steps"], noise=noise)
            yield "picture", distance(picture, pixels.transpose(2, 0, 1)[None] / 255), picture["tolerance"]


def write_png(path: Path, picture: np.ndarray) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = picture.shape
    rows = b"".join(b"\0" + row.tobytes() for row in picture)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompt", default="")
    parser.add_argument("--adapter")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("-o", "--out", type=Path, default=Path("picture.png"))
    parser.add_argument("--verify", action="store_true", help="run the bundle's conformance vectors in place of a picture")
    asked = parser.parse_args(arguments or None)
    bundle = open_bundle(asked.bundle)
    if asked.verify:
        answers = list(conformance(bundle))
        for name, distance, tolerance in answers:
            print(f"{name}: {distance:.2g}, at most {tolerance:.2g}")
        if any(not distance <= tolerance for _, distance, tolerance in answers):
            raise SystemExit("the bundle's answers are not these")
        return
    noise = first_noise(bundle, asked.seed)
    write_png(asked.out, text_to_image(bundle, asked.prompt, adapter=asked.adapter, steps=asked.steps, noise=noise))
    print(asked.out)


if __name__ == "__main__":
    main()
