"""The outcome of a build: the bundle, what it took, and how near it came; the object of `quad build --json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quad.build.write_bundle import rom_bytes
from quad.core.manifest import BundleManifest
from quad.core.memory import peak_ram_bytes
from quad.core.profile import Profile
from quad.core.slots import SlotMode, SlotTable
from quad.lora.adapter import FloatAdapter
from quad.quantize.distill.distill import Alignment
from quad.quantize.profile.anchor import AnchorChoice
from quad.quantize.profile.grouped_ranges import GroupedProfile
from quad.quantize.profile.groups import Group, Grouping, GroupLimits
from quad.quantize.profile.sensitivity import Sensitivity


@dataclass(frozen=True, kw_only=True)
class GroupReport:
    """The groups of adapters that have activation ranges of their own.

    Args:
        limits: as they were asked for.
        choices: whose ranges hold in each group.
    """

    grouping: Grouping
    limits: GroupLimits
    choices: tuple[AnchorChoice, ...]

    @staticmethod
    def of(grouped: GroupedProfile, limits: GroupLimits) -> GroupReport:
        """Of a finished profile."""
        return GroupReport(grouping=grouped.grouping, limits=limits, choices=grouped.choices)

    def to_json(self) -> dict[str, Any]:
        """`groups` of `profile` in `quad build --json`: the limits, a list of groups, and losses in dB."""
        profiles = [
            {"adapters": list(group), "mode": choice.mode, "anchor": choice.anchor}
            for group, choice in zip(self.grouping.groups, self.choices, strict=True)
        ]
        return {"max_loss": self.limits.loss_db, "max_profiles": self.limits.groups, "profiles": profiles, **self.grouping.to_json()}

    def lines(self) -> list[str]:
        """The members of each group with their losses, a line each; and those that lose too much."""
        grouping, lines = self.grouping, []
        for number, group in enumerate(grouping.groups, 1):
            members = ", ".join(f"{name} {grouping.losses[name]:+.1f} dB" for name in group)
            lines.append(f"profile {number} of {len(grouping.groups)}, loss against a profile of its own: {members}")
        lines += self._table()
        poor = [name for name, loss in grouping.losses.items() if loss > self.limits.loss_db]
        if poor:
            lines.append(f"more than {self.limits.loss_db:g} dB is lost by {', '.join(poor)}: allow more with --max-profiles")
        return lines

    def _table(self) -> list[str]:
        """The N x N table, members of a group side by side and a bar between groups; empty where no pair was measured."""
        pairs, groups = self.grouping.pairs, self.grouping.groups
        if not pairs:
            return []

        def cells(i: str, group: Group) -> str:
            return " ".join(f"{pairs[i][j]:6.1f}" if i != j else "     -" for j in group)

        names = [name for group in groups for name in group]
        wide = max(map(len, names))
        rows = [f"{i:>{wide}} " + " |".join(cells(i, group) for group in groups) for i in names]
        return ["dB that a row's adapter loses in one profile with the column's, in the order of the rows, profiles apart:", *rows]


@dataclass(frozen=True, kw_only=True)
class ProfileChoice:
    """The decision between the adapters' ranges.

    Args:
        choice, anchored_sites, widened_sites: of the first group, where there are several.
        groups: None where one profile was asked for.
        anchored_sites, widened_sites: sites that have the anchor's range as it is, and those that were widened for others.
    """

    choice: AnchorChoice
    sensitivity: Sensitivity
    anchored_sites: int
    widened_sites: int
    groups: GroupReport | None = None

    def to_json(self) -> dict[str, Any]:
        """Fields of `profile` in `quad build --json`."""
        counts = {"anchored_sites": self.anchored_sites, "widened_sites": self.widened_sites}
        grouped = {} if self.groups is None else {"groups": self.groups.to_json()}
        return {**self.choice.to_json(), **self.sensitivity.to_json(), **counts, **grouped}


@dataclass(frozen=True, kw_only=True)
class ProfileReport:
    """The profile in figures.

    Args:
        encodings: element type -> encodings of it.
        chosen: how it came to be; None where nothing is quantized.
    """

    mode: str
    anchor: str | None
    digest: str
    encodings: Mapping[str, int]
    chosen: ProfileChoice | None = None

    @staticmethod
    def of(profile: Profile, chosen: ProfileChoice | None = None) -> ProfileReport:
        """Of a finished profile."""
        dtypes = Counter(f"{encoding.dtype}" for encodings in profile.encodings.values() for encoding in encodings.values())
        counts = dict(sorted(dtypes.items()))
        return ProfileReport(mode=profile.mode, anchor=profile.anchor, digest=profile.digest, encodings=counts, chosen=chosen)

    def to_json(self) -> dict[str, Any]:
        """`profile` in `quad build --json`."""
        report = {"mode": self.mode, "anchor": self.anchor, "digest": self.digest, "encodings": dict(self.encodings)}
        return report if self.chosen is None else {**report, **self.chosen.to_json()}

    def lines(self) -> list[str]:
        """The adapters' ranking by sensitivity and what was made of it, a line each; empty where nothing was quantized."""
        if self.chosen is None:
            return []
        lines = []
        for rank, name in enumerate(self.chosen.sensitivity.ranking, 1):
            score = self.chosen.sensitivity.scores[name]
            low, high = score.interval
            lines.append(f"sensitivity {rank}. {name}: {score.qss:.2e} bits ({low:.2e} to {high:.2e}), {score.sqnr_db:.1f} dB")
        groups = [] if self.chosen.groups is None else self.chosen.groups.lines()
        return [*lines, f"profile {self.mode}: {self.chosen.choice.reason}", *groups]


@dataclass(frozen=True, kw_only=True)
class SlotRoom:
    """The rank that slots have for several adapters at once, and its bytes: each adapter takes them in memory.

    Args:
        adapters: how many there is room for; None where every slot has one rank.
        input_bytes: of all slot inputs.
        least_bytes: of all slot inputs if they had rank for one adapter alone.
    """

    adapters: int | None
    input_bytes: int
    least_bytes: int

    @staticmethod
    def of(slots: SlotTable, adapters: Sequence[FloatAdapter], count: int | None) -> SlotRoom:
        """Of a bundle's slots.

        Args:
            adapters: that they were made for.
        """
        scale = 4 if slots.normalised else 0  # float32
        least = sum(
            (slot.channel_bytes + scale) * max(a.weights[slot.path].rank for a in adapters if slot.path in a.weights)
            for slot in slots.of_adapters.slots
        )
        return SlotRoom(
            adapters=count, input_bytes=sum(slot.adapter_rank * (slot.channel_bytes + scale) for slot in slots.slots), least_bytes=least
        )

    def to_json(self) -> dict[str, int | None]:
        """`room` in `quad build --json`."""
        return {"adapters": self.adapters, "input_bytes": self.input_bytes, "least_bytes": self.least_bytes}

    def lines(self, shown: Callable[[int], str]) -> list[str]:
        """The cost, in a line; none where it costs nothing.

        Args:
            shown: writes a number of bytes for people.
        """
        if self.adapters is None or self.input_bytes == self.least_bytes:
            return []
        cost = f"an adapter takes {shown(self.input_bytes)} in memory, {shown(self.least_bytes)} with --room 1"
        return [f"room for {self.adapters} adapters at once, their ranks side by side: {cost}"]


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """One finished build.

    Args:
        stages: seconds per stage.
        stage_cpu: the same of the processor.
        stage_peaks: largest resident size up to each stage's end, bytes.
        smoke: component -> case -> relative error of the shipped graph against the float network.
        placement: of the U-Net: `nodes`, `on_target`, `on_cpu`, `partitions`; the same per component in `components`; empty in a process
            that is not the main one.
        emulation: component -> adapter or `base` -> SQNR in dB of a vendor's compiled graph, or of a LiteRT file, against the same graph on
            the CPU; empty where nothing is compiled.
        alignment: adapter -> SQNR of the U-Net's output before it, after rescaling and after training, and the same of the effect.
        resumed: pieces that an earlier run of the same build had made before it was killed.
        lora: adapter -> `rank`, `notes` (what was converted or reduced, a line each) and `energy`, the share kept of each such module.
        notes: what was read of the model otherwise than one of its files says, and what sizes cost, a line each.
        slots: searched or normalised.
        room: for several adapters at once.
    """

    bundle: Path
    manifest: BundleManifest
    seconds: float
    profile: ProfileReport
    slots: SlotMode
    room: SlotRoom
    stages: Mapping[str, float]
    stage_cpu: Mapping[str, float]
    stage_peaks: Mapping[str, int]
    smoke: Mapping[str, Mapping[str, float]]
    placement: Mapping[str, Any] = field(default_factory=dict)
    emulation: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    alignment: Mapping[str, Alignment] = field(default_factory=dict)
    resumed: tuple[str, ...] = ()
    lora: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    peak_ram_bytes: int = field(default_factory=peak_ram_bytes)

    def to_json(self) -> dict[str, Any]:
        """The object of `quad build --json`."""
        return {
            "bundle": str(self.bundle),
            "seconds": self.seconds,
            "peak_ram_bytes": self.peak_ram_bytes,
            "profile": self.profile.to_json(),
            "alignment": {name: alignment.to_json() for name, alignment in self.alignment.items()},
            "placement": dict(self.placement),
            "emulation": dict(self.emulation),
            "resumed": list(self.resumed),
            "lora": dict(self.lora),
            "notes": list(self.notes),
            "slots": self.slots,
            "room": self.room.to_json(),
            "stages": dict(self.stages),
            "stage_cpu": dict(self.stage_cpu),
            "stage_peak_bytes": dict(self.stage_peaks),
            "smoke": {component: dict(cases) for component, cases in self.smoke.items()},
            "rom_bytes": rom_bytes(self.manifest),
            "tasks": sorted(self.manifest.tasks),
            "adapters": list(self.manifest.adapters),
        }
