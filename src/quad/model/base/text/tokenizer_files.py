"""The tokenizer of a model directory as the text of a `tokenizer.json`; made from `vocab.json` and `merges.txt` where it has only these.

What is made gives the ids of transformers' CLIPTokenizer: NFC, white space joined, lower case, CLIP's split, byte-level pairs with `</w>`
at the end of a word, begin and end around all. Source: Radford et al. 2021 (CLIP), `simple_tokenizer.py`. T5's is read from its own
`tokenizer.json` or `spiece.model`, with what PixArt does to a caption before it: stripped and in lower case, 120 tokens (Chen et al. 2023,
section 3.1).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from quad.core.errors import InputError, UnsupportedError, mismatch
from quad.core.manifest import TextSpec
from quad.model.base.text.t5_tokenizer import SPIECE, t5_tokenizer
from quad.model.base.weight_files import read_config

TOKENIZER_NAME = "tokenizer.json"
_VOCAB, _MERGES = "vocab.json", "merges.txt"
_CONFIG, _MAP, _ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
# In newer configs: id -> token with its flags, and the two other files are not read.
_TABLE = "added_tokens_decoder"
_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"
# In this order: of two that share their text, the last one says how it is found in a prompt.
_SPECIAL = {"bos_token": _BEGIN, "eos_token": _END, "unk_token": _END, "pad_token": _END}
_SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_THEN = "fetch or save the model again"


def read_tokenizer(folder: Path, config: Any, caption_length: int | None = None) -> tuple[str, TextSpec]:
    """The tokenizer as JSON text, and the text encoder's input.

    Args:
        config: of the text encoder.
        caption_length: of a model that reads captions with T5; None for CLIP's.

    Raises:
        InputError: no tokenizer there, one that cannot be read, or one of another model.
        UnsupportedError: a vocabulary that is not CLIP's kind.
    """
    file, captions = folder / TOKENIZER_NAME, caption_length is not None
    if file.is_file():
        text = _read(file)
    elif captions and (folder / SPIECE).is_file():
        text = t5_tokenizer(folder / SPIECE, _optional(folder / _CONFIG)).to_str()
    else:
        text = clip_tokenizer(folder).to_str()
    tokenizer = _parsed(file, text)
    length, size = caption_length or int(config.max_position_embeddings), int(config.vocab_size)
    largest = max(tokenizer.get_vocab().values(), default=0)
    if tokenizer.get_vocab_size() > size or largest >= size:
        counts = f"{tokenizer.get_vocab_size()} tokens, the last of number {largest}"
        raise InputError(
            mismatch(f"{folder}", f"at most {size} tokens (text_encoder/config.json)", counts, "use the model's own tokenizer")
        )
    pad = _pad_id(tokenizer, folder, int(config.pad_token_id or 0))
    if captions and pad != config.pad_token_id:
        raise InputError(mismatch(f"{folder}", f"pad id {config.pad_token_id} (text_encoder/config.json)", pad, _THEN))
    first_vector_id = msgspec.UNSET if captions else size
    spec = TextSpec(length=length, pad_id=pad, hidden=int(config.hidden_size), first_vector_id=first_vector_id)
    return _as_captions(tokenizer).to_str() if captions else text, spec


def _as_captions(tokenizer: Tokenizer) -> Tokenizer:
    """T5's tokenizer that first does to a caption what PixArt's pipeline does to it."""
    normalizer = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Strip(), *normalizer])
    return tokenizer


def clip_tokenizer(folder: Path) -> Tokenizer:
    """CLIP's tokenizer from `vocab.json`, `merges.txt` and, where they are, the files that name its special tokens.

    Raises:
        InputError: a file is missing or broken, or special tokens are not in the vocabulary.
        UnsupportedError: another kind of tokenizer.
    """
    vocab, merges = _vocabulary(folder), _merges(folder / _MERGES)
    special, added = _special(folder), _added_tokens(folder)
    roles, tokenizer = clip_pairs(folder, vocab, merges, special, added)
    _add_others(folder, tokenizer, {name: flags for name, flags in added.items() if name not in roles})
    return tokenizer


def clip_pairs(
    folder: Path, vocab: dict[str, int], merges: list[tuple[str, str]], special: Mapping[str, Any], added: Mapping[str, Any]
) -> tuple[Collection[str], Tokenizer]:
    """CLIP's tokenizer from its vocabulary and pairs.

    Args:
        folder: where they are from, for messages.
        special: role -> token, or its text and flags; CLIP's own where it is silent.
        added: text -> flags of tokens beside the vocabulary.

    Returns:
        The special tokens, and the tokenizer with these alone.

    Raises:
        InputError: special tokens are not in the vocabulary, or pairs are not of it.
    """
    names = {role: _content(special.get(role), default) for role, default in _SPECIAL.items()}
    if absent := [name for name in names.values() if name not in vocab]:
        raise InputError(mismatch(f"{folder / _VOCAB}", "the special tokens", f"no {absent[0]!r}", _THEN))
    try:
        tokenizer = Tokenizer(BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=names["unk_token"]))
    except Exception as error:  # the library raises the bare class
        raise InputError(mismatch(f"{folder / _MERGES}", f"pairs of tokens in {_VOCAB}", f"{error}", _THEN)) from error
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_SPLIT), behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    roles = {names[role]: _added(added.get(names[role], special.get(role)), names[role]) for role in _SPECIAL}
    tokenizer.add_special_tokens(list(roles.values()))
    end, begin = ((names[role], vocab[names[role]]) for role in ("eos_token", "bos_token"))
    tokenizer.post_processor = processors.RobertaProcessing(end, begin, False, False)
    return roles, tokenizer


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(mismatch(f"{file}", "a tokenizer", f"{error}", _THEN)) from error


def _parsed(file: Path, text: str) -> Tokenizer:
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises the bare class
        raise InputError(mismatch(f"{file}", "a tokenizer", f"{error}", _THEN)) from error


def _vocabulary(folder: Path) -> dict[str, int]:
    file = folder / _VOCAB
    if not file.is_file():
        spiece = (folder / SPIECE).is_file()
        other, remedy = ("a SentencePiece model", "use CLIP's own tokenizer") if spiece else ("none", "fetch the model whole")
        raise InputError(mismatch(f"{folder}", f"{TOKENIZER_NAME}, or {_VOCAB} and {_MERGES}", other, remedy))
    vocab = read_config(file)
    if not all(type(index) is int and 0 <= index < 2**31 for index in vocab.values()) or len(set(vocab.values())) < len(vocab):
        raise InputError(mismatch(f"{file}", "a different number for each token", "something else", _THEN))
    if not any(token.endswith("</w>") for token in vocab):
        raise UnsupportedError(mismatch(f"{file}", "CLIP's vocabulary, with </w> at a word's end", "another kind", "save a tokenizer.json"))
    return vocab


def _merges(file: Path) -> list[tuple[str, str]]:
    if not file.is_file():
        raise InputError(mismatch(f"{file.parent}", _MERGES, "none", "fetch the model whole"))
    lines = [line for line in _read(file).split("\n") if line and not line.startswith("#version")]
    pairs = [tuple(line.rstrip("\r").split(" ")) for line in lines]
    if strange := [line for line, pair in zip(lines, pairs, strict=True) if len(pair) != 2]:
        raise InputError(mismatch(f"{file}", "two tokens on every line", repr(strange[0][:40]), _THEN))
    return [(first, second) for first, second in pairs]


def _optional(file: Path) -> dict[str, Any]:
    return read_config(file) if file.is_file() else {}


def _special(folder: Path) -> dict[str, Any]:
    """The special tokens of the directory's files, by role, as transformers reads them. CLIP's own where they are silent."""
    config = _optional(folder / _CONFIG)
    roles = config if _TABLE in config else config | _optional(folder / _MAP)
    return {role: token for role, token in roles.items() if role in _SPECIAL and token is not None}


def _added_tokens(folder: Path) -> dict[str, dict[str, Any]]:
    """Tokens beside the vocabulary, such as textual inversions: their text -> `id` and flags, by id.

    Raises:
        InputError: a table that is none.
    """
    config = _optional(folder / _CONFIG)
    try:
        if _TABLE in config:
            tokens = {str(token["content"]): {**token, "id": int(index)} for index, token in config[_TABLE].items()}
        else:
            listed = _optional(folder / _ADDED)
            special = {_content(token, "") for token in _special(folder).values()}
            tokens = {name: {"id": int(index), "normalized": name not in special} for name, index in listed.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        where = folder / (_CONFIG if _TABLE in config else _ADDED)
        raise InputError(mismatch(f"{where}", "added tokens and their ids", "something else", _THEN)) from error
    return dict(sorted(tokens.items(), key=lambda item: int(item[1]["id"])))


def _add_others(folder: Path, tokenizer: Tokenizer, added: dict[str, dict[str, Any]]) -> None:
    """Add the tokens that have no role.

    Raises:
        InputError: their ids do not follow the vocabulary.
    """
    for name, flags in added.items():
        token = _added(flags, name, special=bool(flags.get("special")))
        tokenizer.add_special_tokens([token]) if token.special else tokenizer.add_tokens([token])
        if (number := tokenizer.token_to_id(name)) != flags["id"]:
            raise InputError(mismatch(f"{folder}", f"added token {name!r} as number {number}", flags["id"], _THEN))


def _content(token: Any, default: str) -> str:
    return str(token.get("content", default)) if isinstance(token, dict) else token if isinstance(token, str) else default


def _added(token: Any, content: str, special: bool = True) -> AddedToken:
    flags = token if isinstance(token, dict) else {"normalized": False}
    behaviour = {flag: bool(flags[flag]) for flag in ("single_word", "lstrip", "rstrip", "normalized") if flag in flags}
    return AddedToken(content, special=special, **behaviour)


def _pad_id(tokenizer: Tokenizer, folder: Path, default: int) -> int:
    if tokenizer.padding:
        return int(tokenizer.padding["pad_id"])
    pad_id = tokenizer.token_to_id(_content(_special(folder).get("pad_token"), _END))
    return default if pad_id is None else int(pad_id)
