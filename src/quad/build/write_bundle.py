"""The bundle directory of docs/formats.md: written whole beside its final place, then renamed."""

from __future__ import annotations

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
        write_bytes(stage / SLOTS_FILE, canonical_json(parts.slots))
        write_bytes(stage / PROFILE_FILE, canonical_json(parts.profile))
        write_bytes(stage / TOKENIZER_FILE, parts.base.tokenizer.encode())
        parents = {"base": parts.base.digest, "slots": parts.slots.digest, "profile": parts.profile.digest,
                   "graph": graph_digest(stage, components["unet"])}  # fmt: skip
        for name, content in parts.stored.items():
            write_bytes(stage / name, content)
        if BASE_CORRECTION_FILE in parts.stored:
            parents["correction"] = file_digest(stage / BASE_CORRECTION_FILE)
        smoke = check(stage, _graph_files(stage, components)) if check is not None else SmokeResult()
        for adapter in parts.adapters:
            _write_adapter(stage / "adapters" / adapter.name, adapter, parts, parents, smoke.goldens.get(adapter.name, msgspec.UNSET))
        manifest = _manifest(stage, parts, components, parents, smoke.bf16)
        write_bytes(stage / BUNDLE_FILE, canonical_json(manifest))
        if vectors is not None:
            manifest = _with_files(stage, manifest, vectors(stage))
    return manifest


def _with_files(stage: Path, manifest: BundleManifest, files: Mapping[str, bytes]) -> BundleManifest:
    """Write more files and the manifest that names them."""
    for name, content in files.items():
        write_bytes(stage / name, content)
    entries = {name: FileEntry(file_digest(stage / name), len(content)) for name, content in files.items()}
    manifest = seal(msgspec.structs.replace(manifest, files=manifest.files | entries))
    write_bytes(stage / BUNDLE_FILE, canonical_json(manifest))
    return manifest


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
    folder: Path, adapter: PackedAdapter, parts: BundleParts, parents: Mapping[str, str], golden: Golden | msgspec.UnsetType
) -> None:
    data = save(dict(adapter.tensors))
    write_bytes(folder / "adapter.safetensors", data)
    tasks = {name: spec for name, spec in parts.tasks.items() if spec.adapter == adapter.name}
    draft = adapter_manifest(adapter, parts.slots, parts.profile, parents, tasks)
    manifest = msgspec.structs.replace(draft, size_bytes=len(data), sha256=file_digest(folder / "adapter.safetensors"), golden=golden)
    write_bytes(folder / "adapter.json", canonical_json(manifest))


def _manifest(
    stage: Path, parts: BundleParts, components: dict[str, Component], parents: dict[str, str], bf16: Bf16Proof | None
) -> BundleManifest:
    files = {path.relative_to(stage).as_posix(): FileEntry(file_digest(path), path.stat().st_size) for path in files_below(stage)}
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
            files=files,
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
