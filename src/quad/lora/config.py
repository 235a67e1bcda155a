"""The scale rule of an adapter's config, read as carefully as any file from outside must be. Source: PEFT `LoraConfig`.

A number or a table of them that is null is refused: what is left out has PEFT's default, and null none, with it PEFT itself fails.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from quad.core.errors import InputError, UnsupportedError, mismatch

AGAIN = "save the adapter again"

_DEFAULT = 8  # PEFT's, for both r and alpha
_LARGEST = 1e12
_LONGEST_PATTERN, _MOST_REPEATS, _MOST_CHOICES, _MOST_EXPRESSIONS = 300, 2, 12, 32
# Initialisations that also change the base's own weights, so that the two matrices alone are not the adapter.
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Options that change what the matrices mean.
_OTHER_MEANING = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias", "monteclora_config", "target_parameters",
    "use_bdlora", "use_qalora",
)  # fmt: skip


def _is_expression(pattern: str) -> bool:
    """Whether a pattern is more than a path: it can match in several ways, and so take its time."""
    return re.search(r"[*+?{|]", pattern) is not None


def _compiled(where: str, pattern: str) -> re.Pattern[str]:
    """PEFT's rule: the pattern matches the end of a path, from a dot on.

    A pattern comes from a file, and some take longer than a life to match: a group that repeats, or many choices in a row, is refused.

    Raises:
        InputError: the pattern is too long, can be slow, or is no regular expression.
    """
    repeats, choices = len(re.findall(r"(?<!\\)[*+?{]", pattern)), pattern.count("|")
    slow = re.search(r"\)[*+?{]|\(\?|\\[1-9]", pattern) or repeats > _MOST_REPEATS or choices > _MOST_CHOICES
    if len(pattern) > _LONGEST_PATTERN or slow:
        raise InputError(mismatch(where, "patterns that are a module's path", f"{pattern[:60]!r}", "write the paths out"))
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(mismatch(where, "patterns that are a module's path", f"{pattern[:60]!r} ({error})", AGAIN)) from error


def _quoted(value: object) -> str:
    return "null" if value is None else f"{value!r}"[:60]


def _number(where: str, value: object, integer: bool) -> float:
    kinds: tuple[type, ...] = (int,) if integer else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not (1 if integer else -_LARGEST) <= value <= _LARGEST:  # type: ignore[operator]
        raise InputError(mismatch(where, "a whole number from 1 on" if integer else "a number", _quoted(value), AGAIN))
    return float(cast("float", value))


@dataclass(frozen=True)
class _Setting:
    """A number with exceptions: the first pattern that matches a module's path wins."""

    plain: float
    patterns: tuple[tuple[re.Pattern[str], float], ...]

    def of(self, spellings: tuple[str, ...]) -> float:
        return next((value for pattern, value in self.patterns if any(pattern.match(path) for path in spellings)), self.plain)


def _setting(where: str, config: Mapping[str, Any], plain: str, patterns: str, integer: bool) -> _Setting:
    exceptions = config.get(patterns, {})
    if not isinstance(exceptions, dict):
        raise InputError(mismatch(f"{where}, {patterns}", "an object of patterns and numbers", _quoted(exceptions), AGAIN))
    if sum(map(_is_expression, exceptions)) > _MOST_EXPRESSIONS:
        raise InputError(mismatch(f"{where}, {patterns}", f"at most {_MOST_EXPRESSIONS} expressions", "more", "write the paths out"))
    default = _number(f"{where}, {plain}", config.get(plain, _DEFAULT), integer)
    compiled = (
        (_compiled(f"{where}, {patterns}", pattern), _number(f"{where}, {patterns}", number, integer))
        for pattern, number in exceptions.items()
    )
    return _Setting(default, tuple(compiled))


@dataclass(frozen=True)
class ScaleRule:
    """How alpha becomes a factor: `alpha / r`, or `alpha / sqrt(r)` with rsLoRA; 1 where no config says otherwise."""

    rank: _Setting | None = None
    alpha: _Setting | None = None
    rslora: bool = False

    def scale(self, path: str, rank: int, alpha: float | None = None, check: bool = True) -> float:
        """The factor that multiplies a module's update.

        Args:
            path: of the module in its own model.
            rank: of its tensors.
            alpha: the file's own tensor for it, which goes before the config.
            check: refuse a config that gives it another rank; LoKr's full matrices have none of their own.

        Raises:
            InputError: the config gives the module another rank than its tensors have.
        """
        if alpha is not None:
            return alpha / rank
        if self.rank is None or self.alpha is None:
            return 1.0
        spellings = (path, f"text_model.{path}")
        config_rank = self.rank.of(spellings)
        if check and config_rank != rank:
            raise InputError(
                mismatch(
                    f"{path!r}", f"rank {config_rank:g} (the adapter's config)", f"rank {rank}", "use the config saved with these weights"
                )
            )
        return self.alpha.of(spellings) / (math.sqrt(config_rank) if self.rslora else config_rank)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """One model's part of an adapter's config; by default that there is none.

    Args:
        kind: PEFT's name of it.
        rule: how alpha becomes a factor.
        dora: each module has a magnitude.
        present: there is a config.
    """

    kind: str = "LORA"
    rule: ScaleRule = field(default_factory=ScaleRule)
    dora: bool = False
    present: bool = False


def parse_json(where: Path, text: str | bytes) -> dict[str, Any]:
    """The JSON object of a config.

    Raises:
        InputError: it is something else.
    """
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(mismatch(f"{where}", "the adapter's config in JSON", f"{error}"[:120], AGAIN)) from error
    if not isinstance(config, dict):
        raise InputError(mismatch(f"{where}", "a JSON object as the adapter's config", type(config).__name__, AGAIN))
    return config


def _require_plain(where: str, config: Mapping[str, Any], kind: str, peft_types: Mapping[str, str]) -> None:
    if kind not in peft_types:
        *most, last = peft_types.values()
        raise UnsupportedError(mismatch(where, f"{', '.join(most)} or {last}", f"{kind[:40]!r} (peft_type)", "convert it to LoRA"))
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_BASE_CHANGING):
        raise UnsupportedError(
            mismatch(where, "an adapter of the unchanged base", f"init_lora_weights={start[:40]!r}", "convert it to plain LoRA")
        )
    for option in _OTHER_MEANING:
        if config.get(option):
            raise UnsupportedError(mismatch(where, "two matrices a module", option, "convert it to plain LoRA"))


def read_config(path: Path, config: Mapping[str, Any], peft_types: Mapping[str, str]) -> AdapterConfig:
    """The scale rule of one model, by its config.

    Args:
        path: of the file that it stands in, for messages.
        peft_types: PEFT's names of the kinds that are read -> ours.

    Raises:
        InputError: a value is of the wrong kind.
        UnsupportedError: it is another kind of adapter than those read, or its base is not the base.
    """
    where = f"{path}"
    kind = str(config.get("peft_type", "LORA")).rpartition(".")[2].upper()
    _require_plain(where, config, kind, peft_types)
    for option in ("use_rslora", "use_dora"):
        if not isinstance(config.get(option) or False, bool):
            raise InputError(mismatch(f"{where}, {option}", "true or false", _quoted(config[option]), AGAIN))
    rank = _setting(where, config, "r", "rank_pattern", integer=True)
    alpha = _setting(where, config, "lora_alpha" if kind == "LORA" else "alpha", "alpha_pattern", integer=False)
    rule = ScaleRule(rank, alpha, bool(config.get("use_rslora")))
    return AdapterConfig(kind=kind, rule=rule, dora=bool(config.get("use_dora")), present=True)
