"""What Python answers of a bundle, for the JavaScript runtime: `python -m tests.runtime.javascript_reference BUNDLE FOLDER`."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sys
from functools import partial
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file

from quad.core.errors import QuadError
from quad.core.manifest import NoiseSchedule, SamplerSpec, TaskSpec
from quad.core.sampling import SamplerKind, SamplerSettings
from quad.core.storage.pack import write_pack
from quad.delivery.publisher.keys import Keys
from quad.delivery.publisher.repository import Repository
from quad.delivery.publisher.terms import PublishTerms
from quad.delivery.publisher.working_copy import ServedComparison
from quad.model.base.checkpoint.clip_vocabulary import checkpoint_tokenizer
from quad.runtime.conditioning.condition import Pictures, make_condition
from quad.runtime.conditioning.embeddings import WordVectors
from quad.runtime.conditioning.prompt_chunks import read_prompt
from quad.runtime.conditioning.tokenizer import Tokenizer
from quad.runtime.conformance.answer import sampler_states
from quad.runtime.conformance.vectors import SamplerVector
from quad.runtime.pipeline import QuadPipeline
from quad.runtime.samplers.names import SAMPLER_NAMES, named_sampler
from quad.runtime.stages import to_picture

SIZES = ((16, 16), (23, 40), (61, 17), (100, 37), (5, 9))
FURTHER: tuple[tuple[SamplerKind, SamplerSettings], ...] = (
    ("pndm", SamplerSettings(skip_prk_steps=False)),
    ("dpmsolver", SamplerSettings(final_sigmas_type="sigma_min", solver_order=3, sigmas="exponential", sigma_min=0.1)),
    ("dpmsolver++", SamplerSettings(solver_order=3, solver_type="heun", lower_order_final=False, euler_at_final=True)),
    ("dpmsolver++", SamplerSettings(lambda_min_clipped=-5.0, timestep_spacing="linspace")),
    ("unipc", SamplerSettings(solver_order=3, solver_type="bh1", disable_corrector=(1,), timestep_spacing="leading")),
    ("ddpm", SamplerSettings(variance_type="fixed_large", clip_sample_range=1.0)),
    ("ddim", SamplerSettings(set_alpha_to_one=False, timestep_spacing="leading", steps_offset=1)),
    ("euler", SamplerSettings(sigmas="exponential", sigma_min=0.05, sigma_max=9.0)),
    ("tcd", SamplerSettings(eta=0.7, original_inference_steps=30)),
)
WEIGHTS = (1.0, 0.5, -0.75, 1.3)
PROMPTS = (
    "a photograph of an astronaut riding a horse, 8k, trending on artstation",
    "masterpiece, (best quality:1.2), 1girl, [lowres], it's 12:30, don't!!! o'clock <3 :-) $100 50% off",
    "caf\u00e9 na\u00efve \u00dcber \u0130stanbul \ufb01ne \u2014 \u201cquoted\u201d \u2026 e\u0301",
    "\u4e2d\u6587 \u3053\u3093\u306b\u3061\u306f \U0001f680\U0001f469\u200d\U0001f680",
    "tab\tand\nline  and   spaces\u00a0and\u3000wide",
    "a " * 100 + "b, " + "c " * 60,
    "word, " * 60,
    "<|endoftext|> in the middle <|startoftext|>",
)
LETTERS = (
    "cat dog's they're 2001 x86 \u00e9t\u00e9 na\u00efve - -- ... ?! \U0001f600 \u0431\u043e\u0442 \u6f22\u5b57 painting "
    "Greg's @home #tag a_b I'll I'LL"
)
SYNTAX = ("", "(", ")", "[", "]", ":1.2)", ":0.3)", "\\(", "\\]", " BREAK ", ",", ", ", "<lora:ink:1>", ":", ".5)", "a|b", "((", "))", "é")


def noise_of(seeds: list[int], count: int) -> list[str]:
    """SHA-256 of the float64 numbers of each seed."""
    return [hashlib.sha256(np.random.default_rng(seed).standard_normal(count).astype("<f8").tobytes()).hexdigest() for seed in seeds]


def prompts_of(words: list[str], count: int) -> list[str]:
    """Prompts of a model's words, words of no model, and every piece of the syntax."""
    rng = random.Random(0)
    pieces = [*words, "zebra", "Quux-7", *SYNTAX]
    return ["".join(rng.choice([word, f" {word}", f"{word} "]) for word in rng.choices(pieces, k=rng.randint(0, 60))) for _ in range(count)]


def texts(tokenizer: Tokenizer, words: WordVectors, prompts: list[str]) -> list[dict[str, Any]]:
    """Ids, weights and notes of each prompt in both syntaxes, or the error."""
    answers = []
    for prompt in prompts:
        for syntax in ("a1111", "plain"):
            answer: dict[str, Any] = {"prompt": prompt, "syntax": syntax}
            try:
                tokens = read_prompt(tokenizer, prompt, syntax, words)
                answer["ids"] = [chunk.ids[0].tolist() for chunk in tokens.chunks]
                answer["weights"] = [chunk.weights.tolist() for chunk in tokens.chunks]
                answer["notes"] = [note.replace("use --adapter or set_adapters()", "use set_adapters()") for note in tokens.notes]
            except QuadError as error:
                answer["error"] = str(error)
            answers.append(answer)
    return answers


def clip(out: Path) -> list[dict[str, Any]]:
    """The same of CLIP's own tokenizer in two chunks, which is written to `out`."""
    config = SimpleNamespace(vocab_size=49408, max_position_embeddings=77, hidden_size=8)
    text, spec = checkpoint_tokenizer(out, config, "<|endoftext|>")
    (out / "clip.json").write_text(text)
    return texts(Tokenizer(text, msgspec.structs.replace(spec, chunks=2)), WordVectors(), [*PROMPTS, *prompts_of(LETTERS.split(), 200)])


def mixes(pipe: QuadPipeline) -> list[dict[str, Any]]:
    """Digest of every graph input of adapters alone, in pairs and all together, or the error."""
    names = list(pipe.adapters)
    chosen = [
        {},
        *({name: weight} for name in names for weight in WEIGHTS),
        *(dict(zip(pair, (0.7, -0.4), strict=True)) for pair in combinations(names, 2)),
    ]
    answers = []
    for weights in [*chosen, dict.fromkeys(names, 1.0)]:
        answer: dict[str, Any] = {"weights": weights}
        try:
            buffers, notes = pipe.switch.store.mix(list(weights), list(weights.values()))
            answer["digests"] = {name: hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() for name, array in buffers.items()}
            answer["notes"] = list(notes)
        except QuadError as error:
            answer["error"] = str(error)
        answers.append(answer)
    return answers


def pictures(pipe: QuadPipeline) -> dict[str, NDArray[Any]]:
    """Conditions and pasted results of pictures of many sizes."""
    rng = np.random.default_rng(0)
    size, factor = pipe.bundle.manifest.picture_size, pipe.bundle.manifest.latent.factor
    sampler = next(iter(pipe.tasks.values())).sampler
    edit = TaskSpec(adapter=None, sampler=sampler, condition="image", mask="zeros")
    fill = TaskSpec(adapter=None, sampler=sampler, condition="masked-image", mask="input")
    cut = TaskSpec(adapter=None, sampler=sampler, condition="cut-image", mask="input")
    tensors: dict[str, NDArray[Any]] = {}
    for number, (width, height) in enumerate((*SIZES, (size.width, size.height))):
        image = rng.integers(0, 256, (height, width, 4), np.uint8)
        image[: height // 2, :, 3] = 255
        mask = (rng.random((height + number % 2, width)) > 0.7).astype(np.uint8) * 255
        made = rng.uniform(-1.3, 1.3, (1, 3, *size.grid)).astype(np.float32)
        given = Pictures(Image.fromarray(image), mask, 2)
        tensors |= {f"{number}/image": image, f"{number}/mask": mask, f"{number}/made": made}
        plain = make_condition("edit", edit, Pictures(Image.fromarray(image)), size, factor)
        filled, holed = (make_condition("fill", spec, given, size, factor) for spec in (fill, cut))
        for name, condition in {"plain": plain, "filled": filled, "holed": holed}.items():
            assert condition.image is not None
            tensors |= {f"{number}/{name}": condition.image, f"{number}/{name}_mask": condition.mask}
        tensors |= {f"{number}/pasted": np.asarray(to_picture(made, filled.paste)), f"{number}/picture": np.asarray(to_picture(made))}
    return tensors


def sampler_runs() -> tuple[list[dict[str, Any]], dict[str, NDArray[Any]]]:
    """Runs of every sampler on Stable Diffusion's schedule, and of settings that no name has; with the tensors that they name."""
    schedule = NoiseSchedule(beta_schedule="scaled_linear", rescale_zero_snr=False, prediction="epsilon")
    own = SamplerSpec(kind="ddim", steps=4)
    specs = [named_sampler(f"{name}:{steps}", own, {}) for name in SAMPLER_NAMES for steps in (5, 20)]
    specs += [SamplerSpec(kind=kind, steps=6, settings=settings) for kind, settings in FURTHER]
    runs, tensors = [], dict[str, NDArray[Any]]()
    for number, spec in enumerate(specs):
        name = f"samplers/{number}"
        vector = SamplerVector(
            name=name, spec=spec, shape=(1, 1, 2, 2), seed=number, output_seed=99, timesteps=(), states=name, tolerance=1e-5
        )  # fmt: skip
        timesteps, tensors[name] = sampler_states(vector, schedule)
        runs.append(msgspec.to_builtins(msgspec.structs.replace(vector, timesteps=timesteps)))
    return runs, tensors


def refusals(pipe: QuadPipeline) -> list[dict[str, Any]]:
    """Calls that are wrong, and what is said of them."""
    calls: list[dict[str, Any]] = [
        {"task": "nonsense"},
        {"sampler": "nonsense:3"},
        {"sampler": "euler:x"},
        {"num_inference_steps": 0},
        {"guidance_scale": 1e9},
        {"strength": 0.5, "task": "text-to-image"},
        {"guidance_interval": "0.5"},
        {"width": 123},
        {"seed": -1},
        {"num_images_per_prompt": 0},
        {"prompt_syntax": "other"},
        {"task": "transform"},
        {"mask_grow": 1.5},
        {"original_size": [3]},
        {"crops_coords_top_left": [0, -1]},
        {"target_size": [512, 512]},
    ]
    answers = []
    for call in calls:
        try:
            pipe("a", **call)
            answers.append({"call": call, "error": None})
        except QuadError as error:
            answers.append({"call": call, "error": str(error).replace(": --image, or image=", ": image="), "kind": type(error).__name__})
    return answers


def sized(pipe: QuadPipeline) -> tuple[list[dict[str, Any]], dict[str, NDArray[Any]]]:
    """Calls that say sizes to a model that is told them, guided and not, and the latents of each; none of another model."""
    if pipe.bundle.manifest.text.sizes is msgspec.UNSET:
        return [], {}
    common = {"task": "text-to-image", "seed": 3, "output_type": "latent"}
    calls: list[dict[str, Any]] = [
        {**common, "guidance_scale": 1.0},
        {**common, "guidance_scale": 3.0},
        {**common, "guidance_scale": 3.0, "negative_prompt": "night", "original_size": [40, 30], "crops_coords_top_left": [4, 0]},
        {**common, "guidance_scale": 3.0, "target_size": [9, 8], "negative_original_size": [7, 7], "negative_target_size": [640, 480]},
    ]
    return calls, {f"sized/{number}": np.asarray(pipe("the car", **call).images[0]) for number, call in enumerate(calls)}


def write_repositories(pipe: QuadPipeline, out: Path) -> None:
    """A signed repository at three moments, one pack, two of one name, and one of them withdrawn; and one by other keys."""
    first, second = (load_file(pipe.bundle.adapter_files(name)[1]) for name in pipe.adapters[:2])
    packs = []
    for version, tensors in enumerate((first, second), start=1):
        packs.append(out / f"{version}.qpack")
        manifest = msgspec.structs.replace(pipe.adapter_manifest(pipe.adapters[version - 1]), name="ink", tasks={})
        write_pack(packs[-1], manifest, tensors)
    terms = PublishTerms("0.2", "1", 0)
    for name in ("repository", "other"):
        working_copy = out / name / "now"
        comparison = ServedComparison(url=None, wanted=False, on_note=lambda _: None)
        repository = Repository(working_copy, Keys(out / f"{name}.keys", b"a password"), comparison)
        repository.init()
        changes = (
            partial(repository.add, packs[:1], terms),
            partial(repository.add, packs[1:], terms),
            partial(repository.revoke, "ink:2", "blurred"),
        )
        for moment, change in enumerate(changes, start=1):
            change()
            shutil.copytree(working_copy, out / name / str(moment))


def write_reference(bundle: Path, out: Path) -> None:
    """Write into a folder what `js/test/beside_python.test.ts` reads."""
    pipe = QuadPipeline.from_pretrained(bundle, engine="ort", threads=1)
    tokenizer = json.loads(pipe.bundle.read("tokenizer/tokenizer.json"))
    words = sorted(tokenizer["model"]["vocab"])
    runs, states = sampler_runs()
    calls, latents = sized(pipe)
    tensors = pictures(pipe) | states | latents
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, out / "reference.safetensors")
    seeds = [*range(40), 2**32 - 1, 2**32, 2**53 + 1, 2**64, 2**128 - 1, 2**160 + 3]
    reference = {
        "noise": [{"seed": str(seed), "sha256": sha256} for seed, sha256 in zip(seeds, noise_of(seeds, 500), strict=True)],
        "texts": texts(pipe.stages.tokenizer, pipe.embeddings.words, prompts_of(words, 200)),
        "clip": clip(out),
        "mixes": mixes(pipe),
        "samplers": runs,
        "refusals": refusals(pipe),
        "sized": calls,
    }
    write_repositories(pipe, out)
    first = pipe.adapters[0]
    write_pack(out / "first.qpack", pipe.adapter_manifest(first), load_file(pipe.bundle.adapter_files(first)[1]))
    (out / "reference.json").write_text(json.dumps(reference))


if __name__ == "__main__":
    write_reference(Path(sys.argv[1]), Path(sys.argv[2]))
