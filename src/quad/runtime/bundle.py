"""Opening a bundle: nothing in it is trusted by its name.

A build may put another bundle in its place at any time. Who opens one then gets the old or the new one. Who has opened one reads the files
that were opened, or is told: each file is compared with what was hashed, and hashed again where the system says that it was written to,
or would not say so because it is so fresh (`Identity`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from time import time_ns
from typing import TypeVar

import msgspec

from quad.core.digests import canonical_json, file_digest
from quad.core.errors import InputError, VerificationError, mismatch
from quad.core.extra_graphs import TINY_DECODER
from quad.core.manifest import (
    BASE_CORRECTION_FILE,
    BUNDLE_FILE,
    FORMAT_VERSION,
    MOST_STEPS,
    PROFILE_FILE,
    SLOTS_FILE,
    TOKENIZER_FILE,
    BundleManifest,
    seal,
)
from quad.core.picture_size import PictureSize
from quad.core.profile import Profile
from quad.core.slots import UNET, SlotTable
from quad.core.storage.files import inside
from quad.core.storage.reading import reading_from
from quad.core.storage.replaced import identity_of, unless_replaced
from quad.core.storage.stable_file import Identity
from quad.core.tensor_names import CONSTANT_ROLES, Role, role_of
from quad.runtime.arguments import flag, path_of

COMPONENTS = ("unet", "text_encoder", "vae_encoder", "vae_decoder")
SIZED = ("unet", "vae_encoder", "vae_decoder")  # the graphs that hang on the size of the pictures
AGAIN = "fetch or build the bundle again"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle: where it is, what it says, and what its graph's inputs mean.

    Args:
        marker: the file `bundle.json` that was read; another bundle has another.
        hashed: name -> the file that was found to have the manifest's digest; None for one that was changed a moment before, so that
            another change would not show.
        group: of adapters, counted from 0, whose graph and profile these are where nothing else is asked for.
    """

    root: Path
    manifest: BundleManifest
    slots: SlotTable
    profile: Profile
    marker: Identity | None = None
    hashed: dict[str, Identity | None] = field(default_factory=dict)
    group: int = 0

    @property
    def group_count(self) -> int:
        """How many groups of adapters there are."""
        unet = self.manifest.components.get(UNET)
        return 1 if unet is None else 1 + len(unet.groups or ())

    def of_group(self, group: int) -> Bundle:
        """The same bundle as it is for one group of adapters, counted from 0; to be called on a bundle as it was opened."""
        own = replace(self, profile=self.profile.of_group(group), group=group)
        vars(own)["digests"] = self.digests  # adapters are packed for the profile of all groups
        return own

    def without_weights(self) -> Bundle:
        """The same for who runs its graphs, which have the encodings of weights themselves: by channel, most of a profile."""
        profile = self.profile
        encodings = {
            component: {name: encoding for name, encoding in of_tensors.items() if role_of(name) is not Role.WEIGHT}
            for component, of_tensors in profile.encodings.items()
        }
        own = replace(self, profile=msgspec.structs.replace(profile, encodings=encodings))
        vars(own)["digests"] = self.digests
        return own

    @property
    def name(self) -> str:
        """Of its directory, for messages: what its manifest calls it is the same wherever it lies."""
        return self.root.absolute().name

    def path(self, name: str) -> Path:
        """A shipped file by its name in the manifest, as it was when the bundle was opened; what was changed since is hashed again.

        Raises:
            VerificationError: the manifest does not list it, it is another now, or gone.
        """
        if name not in self.manifest.files:
            raise VerificationError(mismatch(f"{self.root / BUNDLE_FILE}", f"an entry for {name}", "none", AGAIN))
        try:
            with reading_from(self.root):
                path = self._unchanged(name)
        except VerificationError:
            self._require_place()
            raise
        if name not in self.hashed:  # opened without `verify`
            self._require_place()
        return path

    def read(self, name: str) -> bytes:
        """The bytes of a shipped file.

        Raises:
            VerificationError: as `path`.
        """
        path = self.path(name)
        with reading_from(path):
            data = path.read_bytes()
        if name in self.hashed:
            _check_digest(path, self.manifest.files[name].sha256, hashlib.sha256(data).hexdigest())
        return data

    def graph(self, component: str, size: PictureSize | None = None, group: int | None = None) -> Path:
        """The graph file of a component for one of its further sizes and a group of adapters, None for this bundle's; see `path`, which
        goes for the files beside it too."""
        part = self.manifest.components[component].of(size, self.group if group is None else group)
        return [self.path(name) for name in (*part.data_files, part.file)][-1]

    @contextmanager
    def graph_to_load(self, component: str, size: PictureSize | None = None, group: int | None = None) -> Iterator[Path]:
        """`graph` for a block that reads it: it was the same files before and after.

        Raises:
            VerificationError: as `path`, whatever the block raised.
        """
        try:
            yield self.graph(component, size, group)
        finally:
            self.graph(component, size, group)

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """Digests of slots, profile, and any correction of the base, which an adapter must have been packed for; computed once,
        because a profile is large."""
        correction = {"correction": self.manifest.files[BASE_CORRECTION_FILE].sha256} if self.slots.corrected else {}
        return {"slots": self.slots.digest, "profile": self.profile.digest, **correction}

    def _unchanged(self, name: str) -> Path:
        path = inside(self.root, name)
        if name in self.hashed:
            identity = self.hashed[name]
            if identity is None or not (path.is_file() and Identity.of(path.stat()) == identity):
                self.hashed[name] = _check_file(self.root, name, self.manifest.files[name].sha256)
        return path

    def _require_place(self) -> None:
        """Raises:
        VerificationError: another directory has come to the bundle's name.
        """
        if identity_of(self.root / BUNDLE_FILE) != self.marker:
            raise VerificationError(mismatch(str(self.root), "the bundle that was opened", "another one by now", "open it again"))

    @property
    def device(self) -> str:
        """The chip that it was built for, in words; empty where any machine will do."""
        return ", ".join(f"{name} {value}" for name, value in (self.manifest.requires or {}).items())

    def adapter_files(self, name: str) -> tuple[Path, Path]:
        """`adapter.json` and `adapter.safetensors` of a shipped adapter."""
        return self.path(f"adapters/{name}/adapter.json"), self.path(f"adapters/{name}/adapter.safetensors")


def open_bundle(path: str | Path, verify: bool = True) -> Bundle:
    """Open a bundle directory and check that it is what its manifest says.

    Args:
        path: the directory.
        verify: compare the digest of every file; False checks only the manifest, the slots and the profile.

    Raises:
        InputError: there is no bundle at `path`.
        VerificationError: unknown format version, a changed or missing file, or a name that leaves the directory.
        BackendError: the system does not let it be read.
    """
    root = path_of("path", path)
    flag("verify", verify)
    with reading_from(root):
        return unless_replaced(root / BUNDLE_FILE, lambda: _open(root, verify))


def _open(root: Path, verify: bool) -> Bundle:
    marker, manifest = identity_of(root / BUNDLE_FILE), _read_manifest(root)
    _check_listed(root, manifest)
    hashed = {}
    for name, entry in manifest.files.items():
        if verify or name in (SLOTS_FILE, PROFILE_FILE):
            hashed[name] = _check_file(root, name, entry.sha256)
        else:
            _require_file(root, name)
    _check_numbers(root / BUNDLE_FILE, manifest)
    slots = _decode(inside(root, SLOTS_FILE), SlotTable)
    profile = _decode(inside(root, PROFILE_FILE), Profile)
    if slots.corrected and BASE_CORRECTION_FILE not in manifest.files:
        raise VerificationError(mismatch(f"{root / BUNDLE_FILE}", f"a digest of {BASE_CORRECTION_FILE}, which slots have", "none", AGAIN))
    bundle = Bundle(root=root, manifest=manifest, slots=slots, profile=profile, marker=marker, hashed=hashed)
    for parent, has in bundle.digests.items():
        expected = manifest.parents.get(parent, "none")
        if expected != has:
            raise VerificationError(mismatch(f"{root / BUNDLE_FILE}", f"{parent} digest {expected[:8]}", has[:8], AGAIN))
    _check_groups(root / BUNDLE_FILE, manifest, profile)
    return bundle


def _read_manifest(root: Path) -> BundleManifest:
    """`bundle.json`: version first, then the seal, so that a newer format is told apart from a damaged file."""
    path = root / BUNDLE_FILE
    if not path.is_file():
        state = "no such directory" if not root.exists() else "none"
        raise InputError(mismatch(str(root), f"a bundle directory with {BUNDLE_FILE}", state, "make one with quad build MODEL -o BUNDLE"))
    text = path.read_bytes()
    try:
        version = json.loads(text).get("format_version")
    except (ValueError, AttributeError, RecursionError) as error:
        raise VerificationError(mismatch(str(path), "a JSON object", "something else", AGAIN)) from error
    if version != FORMAT_VERSION:
        next_step = "update quad or build the bundle again"
        raise VerificationError(mismatch(str(path), f"format version {FORMAT_VERSION}", repr(version), next_step))
    manifest = _decode(path, BundleManifest)
    if not manifest.sha256:
        raise VerificationError(mismatch(str(path), "a sealed manifest", "no sha256", AGAIN))
    if canonical_json(seal(manifest)) != text.rstrip(b"\n"):
        raise VerificationError(mismatch(str(path), f"the manifest sealed {manifest.sha256[:8]}", "another text", AGAIN))
    return manifest


def _decode(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise VerificationError(mismatch(str(path), f"a {kind.__name__}", f"something else ({error})", AGAIN)) from error


def _check_listed(root: Path, manifest: BundleManifest) -> None:
    """Every file that will be opened must have a digest."""
    needed = [SLOTS_FILE, PROFILE_FILE, TOKENIZER_FILE]
    for component in COMPONENTS:
        if component not in manifest.components:
            raise VerificationError(mismatch(f"{root / BUNDLE_FILE}", f"a component {component}", sorted(manifest.components), AGAIN))
    for part in manifest.components.values():
        needed += part.files
    for name in manifest.adapters:
        needed += [f"adapters/{name}/adapter.json", f"adapters/{name}/adapter.safetensors"]
    missing = [name for name in needed if name not in manifest.files]
    if missing:
        raise VerificationError(mismatch(f"{root / BUNDLE_FILE}", "a digest for every file", f"none for {', '.join(missing)}", AGAIN))


def _check_numbers(where: Path, manifest: BundleManifest) -> None:
    """Numbers that must go together for a picture to come of them."""
    schedule, latent = manifest.schedule, manifest.latent
    betas = schedule.trained_betas
    if not 2 <= schedule.steps <= MOST_STEPS or (betas is not msgspec.UNSET and len(betas) != schedule.steps):
        raise VerificationError(mismatch(f"{where}", f"a schedule of 2 to {MOST_STEPS} timesteps", schedule.steps, AGAIN))
    if len(latent.scale) != latent.channels or len(latent.shift) != latent.channels:
        expected, numbers = f"{latent.channels} scales and shifts", f"{len(latent.scale)} and {len(latent.shift)}"
        raise VerificationError(mismatch(f"{where}", expected, numbers, AGAIN))
    _check_sizes(where, manifest)
    for name, task in manifest.tasks.items():
        if task.adapter is not None and task.adapter not in manifest.adapters:
            raise VerificationError(mismatch(f"{where}, task {name}", "one of the bundle's adapters", repr(task.adapter), AGAIN))


def _check_sizes(where: Path, manifest: BundleManifest) -> None:
    """Sizes of whole latent pixels, each once, and a graph for each."""
    sizes, factor = manifest.picture_sizes, manifest.latent.factor
    if sizes[0].width != manifest.size or len(set(sizes)) < len(sizes) or any(side % factor for size in sizes for side in size):
        expected = f"sizes of multiples of {factor}, each once, the first {manifest.size} wide"
        raise VerificationError(mismatch(f"{where}", expected, ", ".join(map(str, sizes)), AGAIN))
    for component in sized_components(manifest):
        part = manifest.components[component]
        for graphs in (group.sizes or {} for group in (part, *(part.groups or ()))):
            if sorted(graphs) != sorted(map(str, sizes[1:])):
                expected = f"a graph of {component} for each of {', '.join(map(str, sizes))}"
                raise VerificationError(mismatch(f"{where}", expected, ", ".join(sorted(graphs)) or "the first alone", AGAIN))


def sized_components(manifest: BundleManifest) -> tuple[str, ...]:
    """Names of the graphs that hang on the size of the pictures, those that a bundle has by choice among them."""
    return (*SIZED, TINY_DECODER) if TINY_DECODER in manifest.components else SIZED


def _check_groups(where: Path, manifest: BundleManifest, profile: Profile) -> None:
    """A graph of the U-Net for each group of adapters, and one encoding of every weight and slot in all of them."""
    for name, part in manifest.components.items():
        count = 1 + len(part.groups or ())
        if count != (profile.group_count if name == UNET else 1):
            expected = f"{profile.group_count} groups of graphs of {UNET}, as the profile has, and of it alone"
            raise VerificationError(mismatch(f"{where}", expected, f"{count} of {name}", AGAIN))
    for group in profile.groups or ():
        names = [name for encodings in group.encodings.values() for name in encodings]
        if set(group.encodings) - {UNET} or any(role_of(name) in CONSTANT_ROLES for name in names):
            raise VerificationError(mismatch(f"{where}, a group of adapters", f"ranges of activations of {UNET}", "others", AGAIN))


def _require_file(root: Path, name: str) -> Path:
    path = inside(root, name)
    if not path.is_file():
        raise VerificationError(mismatch(str(root), f"a file {name}", "none", AGAIN))
    return path


def _check_file(root: Path, name: str, sha256: str) -> Identity | None:
    """Compare a digest; which file it is of, if a later change of it would show."""
    path = _require_file(root, name)
    identity, now_ns = Identity.of(path.stat()), time_ns()
    _check_digest(path, sha256, file_digest(path))
    return identity if identity.settled(now_ns) else None


def _check_digest(path: Path, expected: str, actual: str) -> None:
    if actual != expected:
        raise VerificationError(mismatch(str(path), f"digest {expected[:8]}", actual[:8], f"the file was changed or damaged, {AGAIN}"))
