"""The bundle directory of docs/formats.md: written whole beside its final place, then renamed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
from safetensors.numpy import save

from quad import __version__
from quad.build.smoke import SmokeResult
from quad.compile.artifact import Artifact, graph_digest
from quad.compile.shallow import write_with_shallow
from quad.compile.shared_weights import write_variants
from quad.core.chips import of_all
from quad.core.digests import canonical_json, file_digest
from quad.core.manifest import (
    BASE_CORRECTION_FILE,
    BUNDLE_FILE,
    FORMAT_VERSION,
    PROFILE_FILE,
    SLOTS_FILE,
    TOKENIZER_FILE,
    Bf16Proof,
    BundleManifest,
    Component,
    FileEntry,
    Golden,
    GraphFiles,
    TaskSpec,
    seal,
)
from quad.core.picture_size import component_of, graph_name
from quad.core.profile import Profile
from quad.core.slots import UNET, SlotTable
from quad.core.storage.directories import new_directory
from quad.core.storage.files import write_bytes
from quad.core.storage.reading import files_below
from quad.model.base.open import Base
from quad.quantize.observe.side_by_side import side_by_side
from quad.runtime.adapters.packed import PackedAdapter, adapter_manifest

# A bundle's directory and its graph files by name of the graph -> what running them showed.
Check = Callable[[Path, Mapping[str, Path]], SmokeResult]
# The directory of a whole bundle -> files to add to it.
Vectors = Callable[[Path], Mapping[str, bytes]]


@dataclass(frozen=True, kw_only=True)
class BundleParts:
    """All that a bundle is written from.

    Args:
        artifacts: name of a graph -> what the target's compiler left of it.
        tasks: what the bundle can do; each task's adapter is among `adapters`, or None.
        engines: that run the target's graphs, best first.
        requires: what a device must be, e.g. the chip that a binary was compiled for.
        reuse: the U-Net is written with its shallow part beside it.
        stored: file name -> content of what else is shipped, see `quad.build.admission_data`.
    """

    name: str
    base: Base
    target: str
    precision: str
    engines: tuple[str, ...]
    slots: SlotTable
    profile: Profile
    artifacts: Mapping[str, Artifact]
    adapters: tuple[PackedAdapter, ...]
    tasks: Mapping[str, TaskSpec] = field(default_factory=dict)
    requires: Mapping[str, str] = field(default_factory=dict)
    reuse: bool = False
    stored: Mapping[str, bytes] = field(default_factory=dict)


def write_bundle(parts: BundleParts, final: Path, check: Check | None = None, vectors: Vectors | None = None) -> BundleManifest:
    """Write the bundle to `final`, wholly or not at all.

    Args:
        check: called with the directory, and its graph files by name of the graph, once they and stored calls are there, and before it
            gets its final name. If it raises, nothing is left.
        vectors: called with the directory when all else is in it and it opens as a bundle; if it raises, nothing is left.

    Raises:
        InputError: `final` exists and is no bundle.
        BackendError: the disk is full or the place cannot be written to.
    """
    with new_directory(final, BUNDLE_FILE) as stage:
        components = _write_graphs(stage, parts)
        shipped = {SLOTS_FILE: canonical_json(parts.slots), PROFILE_FILE: canonical_json(parts.profile),
                   TOKENIZER_FILE: parts.base.tokenizer.encode(), **parts.stored}  # fmt: skip
        files = _hashed(stage) | {name: _written(stage / name, content) for name, content in shipped.items()}
        parents = {"base": parts.base.digest, "slots": parts.slots.digest, "profile": parts.profile.digest,
                   "graph": graph_digest(components["unet"], lambda name: files[name].sha256)}  # fmt: skip
        if BASE_CORRECTION_FILE in files:
            parents["correction"] = files[BASE_CORRECTION_FILE].sha256
        smoke = check(stage, _graph_files(stage, components)) if check is not None else SmokeResult()
        for entries in side_by_side(lambda adapter: _write_adapter(stage, adapter, parts, parents, smoke.goldens), parts.adapters):
            files |= entries
        manifest = _manifest(parts, components, files, parents, smoke.bf16)
        write_bytes(stage / BUNDLE_FILE, canonical_json(manifest))
        if vectors is not None:
            added = {name: _written(stage / name, content) for name, content in vectors(stage).items()}
            manifest = seal(msgspec.structs.replace(manifest, files=manifest.files | added))
            write_bytes(stage / BUNDLE_FILE, canonical_json(manifest))
    return manifest


def _written(path: Path, content: bytes) -> FileEntry:
    """Write a file and list it, by what was written."""
    write_bytes(path, content)
    return FileEntry(hashlib.sha256(content).hexdigest(), len(content))


def _hashed(stage: Path) -> dict[str, FileEntry]:
    """The files that a compiler has left, each read once."""
    paths = files_below(stage)
    digests = side_by_side(file_digest, paths)
    return {path.relative_to(stage).as_posix(): FileEntry(sha256, path.stat().st_size) for path, sha256 in zip(paths, digests, strict=True)}


def _write_graphs(stage: Path, parts: BundleParts) -> dict[str, Component]:
    """All graphs, those of one component in one folder."""
    variants = list(product((None, *parts.base.more_sizes), range(parts.profile.group_count)))
    components: dict[str, Component] = {}
    for name, artifact in parts.artifacts.items():
        if name != component_of(name):
            continue
        if name == UNET and parts.reuse:
            components |= write_with_shallow(stage / name, artifact)
            continue
        names = {variant: graph_name(name, *variant) for variant in variants}
        several = {variant: parts.artifacts[graph] for variant, graph in names.items() if graph in parts.artifacts}
        components[name] = write_variants(stage / name, several) if len(several) > 1 else artifact.write(stage / name)
    return components


def _graph_files(stage: Path, components: Mapping[str, Component]) -> dict[str, Path]:
    """Each graph's file by its name."""
    files = {}
    for name, component in components.items():
        for number, group in enumerate((component, *(component.groups or ()))):
            files[graph_name(name, None, number)] = stage / group.file
            files |= {graph_name(f"{name}.{size}", None, number): stage / graph.file for size, graph in (group.sizes or {}).items()}
    return files


def _write_adapter(
    stage: Path, adapter: PackedAdapter, parts: BundleParts, parents: Mapping[str, str], goldens: Mapping[str, Golden]
) -> dict[str, FileEntry]:
    """Its files, and what the bundle lists of them."""
    folder = f"adapters/{adapter.name}"
    tensors, described = f"{folder}/adapter.safetensors", f"{folder}/adapter.json"
    entry = _written(stage / tensors, save(dict(adapter.tensors)))
    tasks = {name: spec for name, spec in parts.tasks.items() if spec.adapter == adapter.name}
    draft = adapter_manifest(adapter, parts.slots, parts.profile, parents, tasks)
    golden = goldens.get(adapter.name, msgspec.UNSET)
    manifest = msgspec.structs.replace(draft, size_bytes=entry.size_bytes, sha256=entry.sha256, golden=golden)
    return {tensors: entry, described: _written(stage / described, canonical_json(manifest))}


def _manifest(
    parts: BundleParts, components: dict[str, Component], files: Mapping[str, FileEntry], parents: dict[str, str], bf16: Bf16Proof | None
) -> BundleManifest:
    sizes = parts.base.sizes
    return seal(
        BundleManifest(
            format_version=FORMAT_VERSION,
            name=parts.name,
            target=parts.target,
            precision=parts.precision,
            size=sizes[0].width,
            sizes=msgspec.UNSET if len(sizes) == 1 and sizes[0].is_square else sizes,
            components=components,
            files=dict(sorted(files.items())),
            adapters=tuple(adapter.name for adapter in parts.adapters),
            tasks=dict(parts.tasks),
            schedule=parts.base.schedule,
            latent=parts.base.latent,
            text=parts.base.text,
            engines=parts.engines,
            requires=dict(parts.requires) or msgspec.UNSET,
            chips=of_all(artifact.chips for artifact in parts.artifacts.values()) or msgspec.UNSET,
            samplers=dict(parts.base.samplers) or msgspec.UNSET,
            bf16=msgspec.UNSET if bf16 is None else (bf16,),
            preview=msgspec.UNSET if parts.base.preview is None else parts.base.preview,
            parents=parents,
            quad_version=__version__,
        )
    )


def binary_notes(manifest: BundleManifest) -> tuple[str, ...]:
    """A line on the bytes of every picture size, and one of every profile, where a vendor's binaries hold the weights of each; none where
    graphs share them."""
    apart = [part for part in manifest.components.values() if part.identity is not msgspec.UNSET]
    sized, unet = [part for part in apart if part.sizes], manifest.components[UNET]

    def line(what: str, named: Mapping[str, Sequence[GraphFiles]]) -> str:
        counts = {
            name: sum(manifest.files[file].size_bytes for graph in graphs for file in (graph.file, *graph.data_files))
            for name, graphs in named.items()
        }
        each = ", ".join(f"{name} {count / 1e6:.1f} MB" for name, count in counts.items())
        return f"{manifest.target}: one binary a {what}, each with its own weights: {each}"

    notes = []
    if sized:
        further = manifest.picture_sizes[1:]
        sizes = {manifest.picture_sizes[0]: None, **{size: size for size in further}}
        notes.append(line("size", {f"{name}": [part.of(size) for part in sized] for name, size in sizes.items()}))
    if unet in apart and unet.groups:
        notes.append(line("profile", {f"{number + 1}": [unet.of(None, number)] for number in range(1 + len(unet.groups))}))
    return tuple(notes)


def rom_bytes(manifest: BundleManifest) -> dict[str, Any]:
    """`{"shared": n, "adapters": {name: n}}`: bytes of everything that all adapters share, and of each adapter's files."""
    sizes = {name: entry.size_bytes for name, entry in manifest.files.items()}
    adapters = {
        adapter: sum(size for name, size in sizes.items() if name.startswith(f"adapters/{adapter}/")) for adapter in manifest.adapters
    }
    return {"shared": sum(sizes.values()) - sum(adapters.values()), "adapters": adapters}
