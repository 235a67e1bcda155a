"""Option values with a grammar of their own, `NAME=PATH` with words behind it and `NAME:WEIGHT`, and options of a recipe file."""

from __future__ import annotations

import functools
import inspect
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import msgspec

from quad.core.errors import InputError, UsageError, mismatch
from quad.core.sampling import AdapterDefaults
from quad.core.storage.pack import PACK_SUFFIX
from quad.runtime.adapter_defaults import check_defaults
from quad.runtime.samplers.names import parse_sampler

T = TypeVar("T")
LARGEST_RECIPE = 2**20
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# What may follow an adapter's path, `,KEY=VALUE`; anything else with a comma belongs to the path, or to the value before it.
_KEYS = ("sampler", "guidance", "trigger", "rank")
_MOST_DIGITS = 6
_FOLLOWING = re.compile(r",([a-z_-]+)=")


def _checked_name(option: str, name: str) -> str:
    if not NAME.fullmatch(name):
        raise UsageError(mismatch(option, "a name of letters, digits, '_', '-' and '.'", repr(name), "choose another name"))
    return name


def _unique(option: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(mismatch(option, "each name once", f"{', '.join(twice)} twice", "leave one out"))


def named_paths(option: str, values: Sequence[str]) -> dict[str, Path]:
    """`NAME=PATH` values, in the order given.

    Raises:
        UsageError: a value has no `=`, an unfit name, or the name of another one.
    """
    pairs = []
    for value in values:
        name, equals, path = value.partition("=")
        if not (equals and path):
            example = "ink=ink.safetensors" if option == "NAME=PATH" else f"{option} ink=ink.safetensors"
            raise UsageError(mismatch(option, "NAME=PATH", repr(value), f"write {example}"))
        pairs.append((_checked_name(option, name), Path(path)))
    _unique(option, [name for name, _ in pairs])
    return dict(pairs)


@dataclass(frozen=True, kw_only=True)
class StatedAdapters:
    """Adapters as they were named, in the order given.

    Args:
        defaults: name -> how it is meant to be run, of those where something was said of it.
        ranks: name -> the most that a module of it gets, of those where that was said.
    """

    paths: dict[str, Path]
    defaults: dict[str, AdapterDefaults]
    ranks: dict[str, int]


def stated_adapters(option: str, values: Sequence[str], ranked: bool = True) -> StatedAdapters:
    """`NAME=PATH[,sampler=KIND[:STEPS]][,guidance=G][,trigger=WORDS][,rank=R]` values.

    Args:
        ranked: `rank` may be among the keys.

    Raises:
        UsageError: as `named_paths`; an unknown key, one given twice, or a value that no run or build could take.
    """
    plain, defaults, ranks = [], {}, {}
    for value in values:
        start, name = _FOLLOWING.search(value), value.partition("=")[0]
        plain.append(value if start is None else value[: start.start()])
        said = {} if start is None else _behind(option, value[start.start() :], _KEYS if ranked else _KEYS[:-1])
        if "rank" in said:
            ranks[name] = _rank(option, said.pop("rank"))
        if said:
            defaults[name] = _defaults(option, said)
    return StatedAdapters(paths=named_paths(option, plain), defaults=defaults, ranks=ranks)


def _behind(option: str, text: str, allowed: Sequence[str]) -> dict[str, str]:
    """`,KEY=VALUE` and so on; a value goes up to the next such key."""
    _, *parts = _FOLLOWING.split(text)
    keys = parts[::2]
    if unknown := [key for key in keys if key not in allowed]:
        expected = f"NAME=PATH, and {', '.join(f'{key}=' for key in allowed)} behind it"
        raise UsageError(mismatch(option, expected, f"{unknown[0]}=", "choose one of these"))
    _unique(option, keys)
    return dict(zip(keys, parts[1::2], strict=True))


def _rank(option: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        raise UsageError(mismatch(option, "a whole number as rank", repr(text[:60]), "write ,rank=64"))
    return int(text)


def _defaults(option: str, values: Mapping[str, str]) -> AdapterDefaults:
    """How an adapter is meant to be run, by key."""
    guidance = values.get("guidance")
    try:
        scale = None if guidance is None else float(guidance)
        defaults = msgspec.convert(
            {"sampler": values.get("sampler"), "guidance": scale, "trigger_words": values.get("trigger")}, AdapterDefaults
        )
    except ValueError as error:  # msgspec's own is one
        raise UsageError(mismatch(option, "a number as guidance, and short words", repr(dict(values)), "write ,guidance=1")) from error
    check_defaults(option, defaults)
    return defaults if defaults.sampler is None else msgspec.structs.replace(defaults, sampler=parse_sampler(defaults.sampler).text)


def words_of_files(option: str, values: Sequence[str]) -> list[tuple[str | None, Path]]:
    """`WORD=FILE` values, or `FILE` for the file's own word: any word may stand before the first `=`.

    Raises:
        UsageError: no file, or no word before `=`.
    """
    pairs: list[tuple[str | None, Path]] = []
    for value in values:
        word, equals, path = value.partition("=")
        if not value or (equals and not (word.strip() and path)):
            raise UsageError(mismatch(option, "NAME=FILE", repr(value), f"write {option} mystyle=mystyle.safetensors"))
        pairs.append((word.strip(), Path(path)) if equals else (None, Path(value)))
    return pairs


def weighted_names(option: str, values: Sequence[str]) -> dict[str, float]:
    """`NAME` or `NAME:WEIGHT` values, in the order given; a weight is 1 where none is said. A pack's path may stand for its name.

    Raises:
        UsageError: a weight is no finite number, or a name is unfit or given twice.
    """
    pairs = []
    for value in values:
        pack = is_pack(value)
        name, colon, weight = _pack_and_weight(value) if pack else value.partition(":")
        try:
            number = float(weight) if colon else 1.0
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or ("=" in name and not pack):
            raise UsageError(mismatch(option, "NAME or NAME:WEIGHT", repr(value), f"write {option} ink:0.7"))
        pairs.append((name if pack else _checked_name(option, name), number))
    _unique(option, [name for name, _ in pairs])
    return dict(pairs)


def _pack_and_weight(value: str) -> tuple[str, str, str]:
    return (value, "", "") if value.endswith(PACK_SUFFIX) else value.rpartition(":")


def is_pack(value: str) -> bool:
    """Whether an adapter is named by the path of its pack, `FILE.qpack` or `FILE.qpack:WEIGHT`."""
    return value.endswith(PACK_SUFFIX) or value.rpartition(":")[0].endswith(PACK_SUFFIX)


def one_parameter_per_field(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A verb whose parameter `name` is a struct of options becomes one with a parameter for each field, which is what typer reads.

    So an option is written once, as a field, and serves the command line and the recipe alike. The fields' annotations are typer's.
    """

    def expand(verb: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(verb, include_extras=True)
        options, fields = hints[name], get_type_hints(hints[name], include_extras=True)

        @functools.wraps(verb)
        def call(**values: Any) -> None:
            stated = options(**{field: values.pop(field) for field in fields})
            verb(**values, **{name: stated})

        def as_parameters(parameter: inspect.Parameter) -> list[inspect.Parameter]:
            by_keyword = inspect.Parameter.KEYWORD_ONLY
            if parameter.name != name:
                return [parameter.replace(kind=by_keyword, annotation=hints[parameter.name])]
            return [inspect.Parameter(field, by_keyword, default=None, annotation=_as_typed(kind)) for field, kind in fields.items()]

        parameters = [new for old in inspect.signature(verb).parameters.values() for new in as_parameters(old)]
        call.__dict__["__signature__"] = inspect.Signature(parameters)
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        del call.__dict__["__wrapped__"]  # typer would read the verb's own parameters
        return call

    return expand


def _as_typed(kind: Any) -> Any:
    """The annotation for a command line, where a number is text: a recipe may write `512` for what may also be `"512x768"`."""
    union, *metadata = get_args(kind)
    kinds = set(get_args(union))
    if list[str] in kinds:  # a recipe may write one of several as text
        return Annotated[(list[str] | None, *metadata)]
    return Annotated[(str | None, *metadata)] if {str, int} <= kinds else kind


def read_recipe(path: Path, kind: type[T]) -> T:
    """A recipe: a TOML file of options by their long names, as in `lora-bits = 8`.

    Args:
        kind: a msgspec struct with the options and their types.

    Raises:
        InputError: the file is missing or no TOML.
        UsageError: an option in it is unknown, or of a wrong type.
    """
    try:
        if path.exists() and not (path.is_file() and path.stat().st_size <= LARGEST_RECIPE):
            raise InputError(mismatch(str(path), "a recipe file", "no plain file, or a large one", "check the path"))
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), kind)
    except OSError as error:
        raise InputError(mismatch(str(path), "a recipe file", error.strerror or "none", "check the path")) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(mismatch(str(path), "TOML", str(error), "mend the file")) from error
    except msgspec.ValidationError as error:
        raise UsageError(mismatch(str(path), "options of this verb by their long names", str(error), "mend the file")) from error
