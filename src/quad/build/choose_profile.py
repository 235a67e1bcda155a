"""The one profile of a build: calibrate, pool, score the adapters, choose whose ranges hold. Source: docs/method.md section 4."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import msgspec
from torch import nn

from quad.build.calls.calibration_runs import CalibrationRuns
from quad.build.calls.call_recorder import CallRecorder, fitted_calls, spread
from quad.build.calls.float_teacher import FloatTeacher
from quad.build.four_bits.narrow_weights import NarrowWeights
from quad.build.open_and_slot import SlottedModel
from quad.build.request import COMPENSATED, BuildRequest
from quad.build.result import GroupReport, ProfileChoice, ProfileReport
from quad.build.resume import stages as resumable
from quad.build.round_weights import round_weights
from quad.compile.targets import load_target
from quad.core.component_call import BASE_SOURCE, ComponentCall
from quad.core.encoding import Encoding
from quad.core.precision import DYNAMIC, FLOAT, FLOATS
from quad.core.profile import Profile
from quad.core.progress import Progress, StageClock, with_progress
from quad.core.slots import UNET, SlotTable
from quad.lora.fit.integers import integer_slots
from quad.model.slots.layers import weights_of
from quad.quantize.correct.bias import apply_biases, corrected_biases
from quad.quantize.correct.simulate import of_weights
from quad.quantize.encodings.rules import MIXED_COMPONENT, RULES, Rule, signed_rules, with_fine_tables, with_headroom, with_wider_mid
from quad.quantize.observe.calibrate import CalibrationOptions
from quad.quantize.observe.observers import Feed, Statistics, observe
from quad.quantize.observe.probes import Probes
from quad.quantize.profile.grouped_ranges import GroupedProfile, LossMeter, RangeChooser, grouped_profile, measured_grouping, of_sources
from quad.quantize.profile.groups import Group, Grouping
from quad.quantize.profile.pooled_profile import UnifyOptions, byte_weights, unify
from quad.quantize.profile.sensitivity import Sensitivity, score_adapters
from quad.quantize.profile.shared_ranges import own_profiles

GROUP_CALLS = 4  # of each member, that what it loses in a group is measured on
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ProfileStage:
    """All that passes from quantization to compilation.

    Args:
        slots: with the element type of the graph's inputs.
        calls: of the networks while they were calibrated, where the target's backend needs them.
        group_of: adapter -> number of its group, counted from 0.
    """

    profile: Profile
    slots: SlotTable
    report: ProfileReport
    calls: tuple[ComponentCall, ...] = ()
    group_of: Mapping[str, int] = field(default_factory=dict)


def choose_profile(
    request: BuildRequest, model: SlottedModel, teacher: FloatTeacher, clock: StageClock, *, given: NarrowWeights,
    needs_calls: bool,
) -> ProfileStage:  # fmt: skip
    """The stages calibrate, score, round and unify; with `--precision float` an empty profile, with `dynamic-w8` one of weights.

    Rounded weights and corrected biases are written into the networks of `model`; those of `teacher` stay as they are, or are let go where
    nothing is trained.

    Args:
        given: weights that are rounded already, or have an encoding.

    Raises:
        InputError, UsageError: as `quad.build.build.build`.
    """
    parents = {"base": model.base.digest, **{f"adapter:{adapter.name}": adapter.digest for adapter in model.adapters}}
    if request.resolved_precision in FLOATS:
        return _float_profile(request, model, {**parents, "slots": model.table.digest}, clock, needs_calls=needs_calls)
    target = load_target(request.target)
    slots = integer_slots(model.table, request.lora_bits, target.int16_largest)
    recorder = CallRecorder.of(model.adapters, model.table) if needs_calls else None
    runs = _runs(model, recorder)
    with clock("calibrate"), runs.counting() if request.rounding == COMPENSATED else nullcontext(runs.every) as feeds:
        statistics = _observed(model, feeds, recorder, clock.within("calibrate"))
    with clock("score"):
        options = _options(request, {**parents, "slots": slots.digest}, given)
        rules = model.cache.value("rules", lambda: model.mixed_precision.rules(statistics, options), tuple[Rule, ...])
        options = _with_rules(options, rules, request, slots)
        pooled = _pooled(model, statistics, slots, options)
        teacher.let_go()
    with clock("round"):
        if request.rounding == COMPENSATED:
            grams = partial(runs.take_grams, clock.within("round"))
            round_weights(model, pooled, grams, correct_biases=request.quality.bias_correction)
        if request.quality.bias_correction:  # of the other layers: a weight that lies on its lattice has no error
            _correct_biases(model.networks, statistics, pooled)
        options = replace(options, given=_of_weights(pooled))  # what is rounded tells no range
    with clock("score"):
        scoring = _Scoring(model=model, teacher=teacher, slots=slots, progress=clock.within("score"))
        sensitivity = model.cache.value("sensitivity", lambda: scoring.sensitivity(pooled, statistics, options), Sensitivity)
    with clock("unify"):
        chooser = RangeChooser(
            pooled=pooled, statistics=statistics, table=slots, sensitivity=sensitivity, options=options, anchor=request.anchor
        )
        grouped = _grouped(request, model, teacher, chooser)
        profile, widened = grouped.profile, len(grouped.first.widened)
        _log.info("profile: %s, anchor %s, %d sites widened, %d groups", profile.mode, profile.anchor, widened, profile.group_count)
        if model.mixed_precision.gains:
            profile = msgspec.structs.replace(profile, gains={MIXED_COMPONENT: dict(model.mixed_precision.gains)})
    chosen = ProfileChoice(
        choice=grouped.choices[0],
        sensitivity=sensitivity,
        anchored_sites=grouped.first.sites - widened,
        widened_sites=widened,
        groups=None if request.profile_limits is None else GroupReport.of(grouped, request.profile_limits),
    )
    report = ProfileReport.of(profile, chosen)
    calls = fitted_calls(_calls(recorder), model.adapters, slots, profile)
    return ProfileStage(profile=profile, slots=slots, report=report, calls=calls, group_of=grouped.group_of)


def _options(request: BuildRequest, parents: Mapping[str, str], given: NarrowWeights) -> UnifyOptions:
    target = load_target(request.target)
    return UnifyOptions(
        lora_bits=request.lora_bits,
        ranges=request.quality.ranges,
        parents=parents,
        literal_shared_scale=request.literal_shared_scale,
        int16_largest=target.int16_largest,
        integer_scales=target.integers_only,
        given=given.encodings,
        corrections=given.largest_scales,
    )


def _float_profile(
    request: BuildRequest, model: SlottedModel, parents: Mapping[str, str], clock: StageClock, *, needs_calls: bool
) -> ProfileStage:
    """The profile of activations that stay floats: empty, or of weights of 8 bits, which are rounded."""
    recorder = CallRecorder.of(model.adapters, model.table) if needs_calls else None
    runs = _runs(model, recorder)
    if recorder is not None:
        with clock("calibrate"):
            _observed(model, runs.every, recorder, clock.within("calibrate"))
    encodings: dict[str, dict[str, Encoding]] = {}
    if request.resolved_precision == DYNAMIC:
        weights = {name: weights_of(network) for name, network in model.networks.items()}
        encodings = byte_weights(weights, UnifyOptions(ranges=request.quality.ranges, rules=with_fine_tables(RULES)))
    profile = Profile(encodings=encodings, mode=FLOAT, parents=dict(parents))
    if encodings and request.rounding == COMPENSATED:
        with clock("round"):
            grams = partial(runs.take_grams, clock.within("round"))
            round_weights(model, profile, grams, correct_biases=request.quality.bias_correction)
    return ProfileStage(profile=profile, slots=model.table, report=ProfileReport.of(profile), calls=_calls(recorder))


def _grouped(request: BuildRequest, model: SlottedModel, teacher: FloatTeacher, chooser: RangeChooser) -> GroupedProfile:
    """The profile of all groups of adapters."""
    grouping = _grouping(request, model, teacher, chooser)
    if len(grouping.groups) > 1:
        chooser, grouping = _with_sites_of(grouping.largest, request, model, teacher, chooser, grouping)
    return grouped_profile(chooser, grouping)


def _grouping(request: BuildRequest, model: SlottedModel, teacher: FloatTeacher, chooser: RangeChooser) -> Grouping:
    """The adapters' groups; one where no more are asked for."""
    if request.profile_limits is None or not model.adapters:
        return Grouping.single([adapter.name for adapter in model.adapters])
    limits, probes = request.profile_limits, _group_probes(model, teacher)
    meter = LossMeter(model.networks[UNET], model.adapters, probes=probes, chooser=chooser)
    return model.cache.value("groups", lambda: measured_grouping(meter, model.adapters, probes, limits), Grouping)


def _group_probes(model: SlottedModel, teacher: FloatTeacher) -> Probes:
    """Calls that losses of adapters and of the base are measured on."""
    recorded = {**teacher.probes, BASE_SOURCE: model.mixed_precision.probes.get(BASE_SOURCE, ())}
    return {name: spread(calls, GROUP_CALLS) for name, calls in recorded.items() if calls}


def _with_sites_of(
    sources: Group, request: BuildRequest, model: SlottedModel, teacher: FloatTeacher, chooser: RangeChooser, grouping: Grouping
) -> tuple[RangeChooser, Grouping]:
    """The 8-bit sites of all groups' graphs, chosen anew by what one group brings; and what adapters lose with these."""
    statistics = of_sources(chooser.statistics, sources)
    rules = model.cache.value(
        "rules.grouped", lambda: model.mixed_precision.of_sources(sources).rules(statistics, chooser.options), tuple[Rule, ...]
    )
    options = _with_rules(chooser.options, rules, request, chooser.table)
    if options == chooser.options:
        return chooser, grouping
    pooled = _pooled(model, chooser.statistics, chooser.table, options)
    chooser = replace(chooser, pooled=pooled, options=options)
    meter = LossMeter(model.networks[UNET], model.adapters, probes=_group_probes(model, teacher), chooser=chooser)

    def losses() -> dict[str, float]:
        return {name: loss for group in grouping.groups for name, loss in meter.losses(group).items()}

    return chooser, replace(grouping, losses=model.cache.value("groups.losses", losses, dict[str, float]))


def _with_rules(options: UnifyOptions, rules: tuple[Rule, ...], request: BuildRequest, slots: SlotTable) -> UnifyOptions:
    target = load_target(request.target)
    if slots.normalised:
        rules = with_wider_mid(request.quality.mid_widening, rules)
        # Where every edge is an integer, those between these sites have no headroom either.
        rules = rules if target.integers_only else with_headroom(rules)
    rules = rules if target.takes_byte_tables else with_fine_tables(rules)
    return replace(options, rules=signed_rules(rules) if target.signed else rules)


def _pooled(model: SlottedModel, statistics: Statistics, slots: SlotTable, options: UnifyOptions) -> Profile:
    weights = {name: weights_of(network) for name, network in model.networks.items()}
    return unify(statistics, weights, slots, model.adapters, options)


def _runs(model: SlottedModel, recorder: CallRecorder | None) -> CalibrationRuns:
    return CalibrationRuns(model, CalibrationOptions(call_hook=None if recorder is None else recorder.hook))


def _calls(recorder: CallRecorder | None) -> tuple[ComponentCall, ...]:
    return () if recorder is None else tuple(recorder.calls())


def _observed(model: SlottedModel, feeds: Sequence[Feed], recorder: CallRecorder | None, progress: Progress) -> Statistics:
    """Statistics of every Site; every call must be recorded, where calls are: then nothing is taken from an earlier run."""
    float_type = model.statistics_type
    told = with_progress(feeds, len(feeds), "calibrate", progress)
    if recorder is not None:
        return observe(model.networks, recorder.follow(told), together=False, float_type=float_type)
    sources = (*(adapter.name for adapter in model.adapters), BASE_SOURCE)
    return resumable.observed(model.cache, model.networks, told, sources, float_type)


def _of_weights(profile: Profile) -> dict[str, dict[str, Encoding]]:
    """The encodings of weights, of every component."""
    return {component: dict(of_weights(profile, component).component(component)) for component in profile.encodings}


@dataclass(frozen=True, kw_only=True)
class _Scoring:
    """The sensitivity of every adapter, on calls of the float teacher."""

    model: SlottedModel
    teacher: FloatTeacher
    slots: SlotTable
    progress: Progress

    def sensitivity(self, pooled: Profile, statistics: Statistics, options: UnifyOptions) -> Sensitivity:
        """QSS of every adapter.

        Args:
            pooled: of `unify`, with the same options.
        """
        adapters = self.model.adapters
        if not adapters:
            return Sensitivity({}, None)
        profiles = own_profiles(pooled, statistics, self.slots, adapters, options)
        return score_adapters(self.model.networks["unet"], self.slots, adapters, profiles, self.teacher.probes, self._report)

    def _report(self, adapter: str, share: float) -> None:
        self.progress(f"score {adapter}", share)


def _correct_biases(networks: Mapping[str, nn.Module], statistics: Statistics, profile: Profile) -> None:
    """Write corrected biases into the networks themselves."""
    for name, network in networks.items():
        apply_biases(network, corrected_biases(network, name, statistics, profile))
