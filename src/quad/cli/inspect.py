"""`quad inspect`: what a bundle, a pack or a LoRA file holds, after checking that it is whole."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from quad.cli.shared_options import Vae
from quad.cli.show import Json, result, size
from quad.core.errors import UsageError, mismatch
from quad.core.sampling import AdapterDefaults
from quad.core.slots import NORMALISED, SEARCHED
from quad.core.tensor_names import Role, role_of
from quad.lora.quote import quoted

if TYPE_CHECKING:
    from quad.runtime import Bundle

InspectedPath = Annotated[
    Path,
    typer.Argument(
        metavar="BUNDLE|PACK|LORA-FILE", help="A bundle directory, a .qpack, a LoRA file or a textual inversion.", show_default=False
    ),
]


InspectedBase = Annotated[
    str | None,
    typer.Option("--base", metavar="MODEL", help="Also read a LoRA file for this model: what each part of it gets, and how well.",
                 show_default=False),
]  # fmt: skip


class AdapterFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter: rank of its own, bits per weight, size on disk, and where known the largest weight never clipped, and its defaults.

    Args:
        headroom: of normalised slots, which clip no weight, the largest one that was tried.
        profile: the number of its own among the bundle's, from 1, where there are several.
    """

    rank: int
    bits: int
    bytes: int
    headroom: float | msgspec.UnsetType = msgspec.UNSET
    defaults: AdapterDefaults | msgspec.UnsetType = msgspec.UNSET
    profile: int | msgspec.UnsetType = msgspec.UNSET


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """The object of `--json`; `details` holds what only bundles and packs know."""

    kind: str
    slots: int
    profile_digest: str | None
    slots_digest: str | None
    adapters: dict[str, AdapterFacts]
    details: dict[str, Any] = {}


def inspect(path: InspectedPath, base: InspectedBase = None, vae: Vae = None, as_json: Json = False) -> None:
    """Show what a bundle, a pack or a LoRA file holds; every digest is checked."""
    if vae is not None and base is None:
        raise UsageError(mismatch("--vae", "a model to read the file for", "none", "name it: --base MODEL"))
    facts, lines = _facts(path), list[str]()
    if base is not None:
        facts, lines = _for_base(path, base, vae, facts)
    result(facts, as_json, [*_lines(path, facts), *lines])


def _for_base(path: Path, base: str, vae: Path | None, facts: Facts) -> tuple[Facts, list[str]]:
    """With what each model of a base gets of a LoRA file, and the same for people.

    Raises:
        UsageError: it is none. InputError, UnsupportedError: it is for another base, or the base cannot be opened.
    """
    from quad.cli.lora.for_base import for_base

    if facts.kind != "lora":
        raise UsageError(
            mismatch(
                "--base",
                "a LoRA file to read for it",
                f"an {facts.kind}" if facts.kind == "embedding" else f"a {facts.kind}",
                "leave it out",
            )
        )
    (name,) = facts.adapters
    details, lines = for_base(name, path, base, vae)
    return msgspec.structs.replace(facts, details={**facts.details, **details}), lines


def _facts(path: Path) -> Facts:
    from quad.cli.lora.header import read_words
    from quad.core.manifest import BUNDLE_FILE

    if (path / BUNDLE_FILE).is_file():
        return _bundle_facts(path)
    if words := read_words(path):
        return _embedding_facts(words)
    return _file_facts(path)


def _embedding_facts(words: dict[str, tuple[int, int]]) -> Facts:
    shapes = {word: list(shape) for word, shape in words.items()}
    details = {"words": list(words), "vectors": shapes}
    return Facts(kind="embedding", slots=0, profile_digest=None, slots_digest=None, adapters={}, details=details)


def _file_facts(path: Path) -> Facts:
    """Of a LoRA file, or of a pack."""
    from quad.cli.lora.header import find_files, read_headers

    header = read_headers(path)
    files = [file.path for file in find_files(path)]
    if header.is_pack:
        return _pack_facts(files[0])
    name = path.name if path.is_dir() else path.stem
    said = msgspec.UNSET if header.defaults == AdapterDefaults() else header.defaults
    n_bytes = sum(file.stat().st_size for file in files)
    adapter = AdapterFacts(rank=max(header.ranks.values()), bits=header.bits, bytes=n_bytes, defaults=said)
    return Facts(
        kind="lora",
        slots=len(header.ranks),
        profile_digest=None,
        slots_digest=None,
        adapters={name: adapter},
        details={
            "kinds": header.kinds,
            "beside": header.beside,
            "dialects": header.dialects,
            "trained_on": asdict(header.trained_on),
            "words": list(header.words),
            "tensors": header.tensors,
        },
    )


def _bundle_facts(path: Path) -> Facts:
    from quad.core.storage.pack import parse_adapter_manifest
    from quad.runtime import open_bundle

    bundle = open_bundle(path)
    manifest = bundle.manifest
    adapters = {}
    for name in manifest.adapters:
        text, tensors = bundle.adapter_files(name)
        adapter = parse_adapter_manifest(str(text), text.read_bytes())
        adapters[name] = AdapterFacts(
            rank=adapter.rank,
            bits=adapter.bits,
            bytes=tensors.stat().st_size,
            headroom=adapter.headroom,
            defaults=adapter.defaults,
            profile=adapter.group_number + 1 if bundle.profile.groups else msgspec.UNSET,
        )
    total = sum(entry.size_bytes for entry in manifest.files.values())
    details = {
        "name": manifest.name,
        "target": manifest.target,
        "precision": manifest.precision,
        "picture_sizes": [str(size) for size in manifest.picture_sizes],
        "engines": manifest.engines,
        "requires": dict(manifest.requires or {}),
        **({"chips": dict(manifest.chips)} if manifest.chips else {}),
        "tasks": {task: spec.adapter for task, spec in manifest.tasks.items()},
        "merged": {adapter.name: adapter.weight for adapter in manifest.merged or ()},
        "size_bytes": total,
        "slot_mode": NORMALISED if bundle.slots.normalised else SEARCHED,
        "words": _words(bundle),
        **({"profiles": bundle.profile.group_count} if bundle.profile.groups else {}),
    }
    return Facts(
        kind="bundle",
        slots=len(bundle.slots.slots),
        profile_digest=bundle.profile.digest,
        slots_digest=bundle.slots.digest,
        adapters=adapters,
        details=details,
    )


def _words(bundle: Bundle) -> list[str]:
    """Words that came inside its adapters."""
    from quad.core.manifest import EMBEDDINGS_FILE
    from quad.runtime.conditioning.embeddings import parse_embeddings

    if EMBEDDINGS_FILE not in bundle.manifest.files:
        return []
    return sorted(parse_embeddings(f"{bundle.root}", bundle.read(EMBEDDINGS_FILE)))


def _pack_facts(path: Path) -> Facts:
    from quad.core.storage.pack import read_pack

    pack = read_pack(path)
    manifest = pack.manifest
    adapter = AdapterFacts(
        rank=manifest.rank, bits=manifest.bits, bytes=manifest.size_bytes, headroom=manifest.headroom, defaults=manifest.defaults
    )
    slots = sum(role_of(name) is Role.LORA_A for name in pack.tensors)
    mode = NORMALISED if any(role_of(name) is Role.LORA_SCALE for name in pack.tensors) else SEARCHED
    details = {"tasks": sorted(manifest.tasks), "size_bytes": path.stat().st_size, "slot_mode": mode}
    return Facts(
        kind="pack",
        slots=slots,
        profile_digest=manifest.parents.get("profile"),
        slots_digest=manifest.parents.get("slots"),
        adapters={manifest.name: adapter},
        details=details,
    )


def _lines(path: Path, facts: Facts) -> list[str]:
    is_normalised = facts.details.get("slot_mode") == NORMALISED
    slots = f"slots {facts.slots}{', normalised' if is_normalised else ''}"
    lines = [f"{facts.kind}  {path}", *([] if facts.kind == "embedding" else [slots])]
    if facts.profile_digest and facts.slots_digest:
        lines.append(f"profile {facts.profile_digest[:12]}, slots {facts.slots_digest[:12]}")
    if "profiles" in facts.details:
        lines.append(f"{facts.details['profiles']} profiles, a graph of the U-Net each over the same weights; the base has profile 1")
    for key in ("target", "precision"):
        if key in facts.details:
            lines.append(f"{key} {facts.details[key]}")
    if "picture_sizes" in facts.details:
        lines.append(f"pictures {', '.join(facts.details['picture_sizes'])}")
    if facts.details.get("beside"):
        lines.append("not carried " + ", ".join(f"{name}: {count} tensors" for name, count in facts.details["beside"].items()))
    if facts.details.get("kinds"):
        lines.append("kinds " + ", ".join(f"{kind}: {count} modules" for kind, count in facts.details["kinds"].items()))
    lines += _lora_lines(facts.details)
    if facts.details.get("requires"):
        lines.append("needs " + ", ".join(f"{key} {value}" for key, value in facts.details["requires"].items()))
    lines += [f"{chip}: {state}" for chip, state in facts.details.get("chips", {}).items()]
    if "tasks" in facts.details:
        lines.append(f"tasks {', '.join(facts.details['tasks']) or 'none'}")
    if facts.details.get("merged"):
        lines.append("in its weights " + ", ".join(f"{name}:{weight:g}" for name, weight in facts.details["merged"].items()))
    for name, adapter in facts.adapters.items():
        facts_of = f"rank {adapter.rank}, {adapter.bits} bits, {size(adapter.bytes)}"
        lines.append(f"adapter {name}: {facts_of}{_extras(adapter, is_normalised)}")
    if "size_bytes" in facts.details:
        lines.append(f"in all {size(facts.details['size_bytes'])}")
    return lines


def _lora_lines(details: dict[str, Any]) -> list[str]:
    lines = []
    if details.get("dialects"):
        lines.append("names as " + ", ".join(f"{dialect} ({count} tensors)" for dialect, count in details["dialects"].items()))
    if (trained := details.get("trained_on", {})).get("name"):
        predicts = f", predicts {trained['prediction']}" if trained["prediction"] else ""
        lines.append(f"trained on {trained['family'] or 'a base'} ({trained['name']}){predicts}, by its metadata")
    if details.get("words") and "vectors" not in details:
        lines.append(f"words with vectors {', '.join(map(quoted, details['words']))}")
    lines += [f"{quoted(word)}: {count} vectors of {width}" for word, (count, width) in details.get("vectors", {}).items()]
    return lines


def _extras(adapter: AdapterFacts, is_normalised: bool) -> str:
    group = "" if adapter.profile is msgspec.UNSET else f", profile {adapter.profile}"
    return f"{_weights(adapter, is_normalised)}{group}{_meant(adapter)}"


def _weights(adapter: AdapterFacts, is_normalised: bool) -> str:
    from quad.runtime.adapters.weighted_sum import show_headroom

    if adapter.headroom is msgspec.UNSET:
        return ", any weight" if is_normalised else ""
    return f", weights up to {show_headroom(adapter.headroom)}{' tried' if is_normalised else ''}"


def _meant(adapter: AdapterFacts) -> str:
    said = AdapterDefaults() if adapter.defaults is msgspec.UNSET else adapter.defaults
    guidance = None if said.guidance is None else f"{said.guidance:g}"
    words = {"sampler": said.sampler, "guidance": guidance, "trigger words": said.trigger_words and repr(said.trigger_words)}
    return "".join(f", {what} {value}" for what, value in words.items() if value)
