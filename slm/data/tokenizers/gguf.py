"""Tokenizers as the vocabulary of a GGUF file, which llama.cpp encodes and decodes text with.

llama.cpp has its own code for each pre-tokenizer and knows it by a name, so a tokenizer is exported only
if its definition equals one of the known ones:

- byte-level BPE (llama.cpp's model "gpt2") with the pre-tokenizer of GPT-2, which `tokenizer=bpe` uses, or
  of SmolLM. A byte tokenizer is such a BPE without merges.
- SentencePiece BPE with byte fallback (llama.cpp's model "llama"), the tokenizer of Llama 2 and MobileLLM.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby
from typing import TYPE_CHECKING, Any

from slm.data.tokenizers.export import build_hf_byte_tokenizer
from slm.data.tokenizers.hf_files import END_OF_TEXT
from slm.data.tokenizers.kinds import SPACE, WORDS
from slm.data.tokenizers.tokenizer import ByteTokenizer, HFTokenizer, Tokenizer
from slm.errors import DataError

if TYPE_CHECKING:
    from gguf import GGUFWriter

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
PRE_TOKENIZERS = {  # llama.cpp's name -> definition of the library `tokenizers`
    "gpt-2": BYTE_LEVEL,
    "smollm": {"type": "Sequence", "pretokenizers": [DIGITS, BYTE_LEVEL]},
}
FIX = "export with format=hf"
MAX_CHARACTERS = 100  # of a definition in a message


class TokenKind(IntEnum):
    """Token types of llama.cpp (`llama_token_type`)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class GGUFVocabulary:
    """The tokenizer keys of a GGUF file."""

    model: str
    """Algorithm of llama.cpp: gpt2 (byte-level BPE) or llama (SentencePiece BPE)."""
    pre: str
    """Name of the pre-tokenizer."""
    tokens: list[str]
    kinds: list[TokenKind]
    bos_id: int
    """Token that llama.cpp adds at the start of a prompt, as each training document has it."""
    eos_id: int
    """Token at which llama.cpp stops."""
    merges: list[str] | None = None
    """Pairs of tokens separated by a space, the first merged first; for gpt2."""
    scores: list[float] | None = None
    """The token with the highest score is merged first; for llama."""
    add_space_prefix: bool = False

    def write(self, writer: GGUFWriter) -> None:
        """Add the keys to a `gguf.GGUFWriter`."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        writer.add_bos_token_id(self.bos_id)
        writer.add_eos_token_id(self.eos_id)
        writer.add_add_bos_token(True)
        writer.add_add_eos_token(False)
        writer.add_add_space_prefix(self.add_space_prefix)


def gguf_vocabulary(tokenizer: Tokenizer, rows: int, eos_id: int | None = None) -> GGUFVocabulary:
    """Return the vocabulary of a tokenizer for a model whose embedding table has that many rows.

    `eos_id=None` means that the end-of-text token, which starts a document, also ends it.

    Raises:
        DataError: if llama.cpp cannot give the same ids, or the tokenizer has more tokens than rows.
    """
    if isinstance(tokenizer, ByteTokenizer):
        if tokenizer.escapes:
            raise DataError(
                "tokenizer.kind=ascii: llama.cpp cannot represent its escapes of bytes outside of ASCII; "
                f"{FIX}, or train with tokenizer=byte or tokenizer=bpe"
            )
        saved = json.loads(build_hf_byte_tokenizer(tokenizer).to_str())
        end_of_text = END_OF_TEXT
    elif isinstance(tokenizer, HFTokenizer):
        saved, end_of_text = tokenizer.definition(), tokenizer.end_of_text
    else:
        raise DataError(f"{type(tokenizer).__name__}: not supported by llama.cpp; {FIX}")
    model = saved["model"]
    _check_bpe(model)
    tokens, kinds = _tokens(saved, rows)
    bos_id = tokens.index(end_of_text)
    kinds[bos_id] = TokenKind.CONTROL
    ends = bos_id, bos_id if eos_id is None else eos_id
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    if model["byte_fallback"]:
        adds_space, scores = _adds_space_prefix(saved), _scores(tokens, merges)
        return GGUFVocabulary("llama", "default", tokens, kinds, *ends, None, scores, adds_space)
    # GGUF has no empty arrays, and llama.cpp requires merges: this one can never apply.
    lines = [" ".join(pair) for pair in merges] or [f"{end_of_text} {end_of_text}"]
    return GGUFVocabulary("gpt2", _pre_tokenizer(saved), tokens, kinds, *ends, lines)


def _check_bpe(model: Mapping[str, Any]) -> None:
    """Raise a DataError unless the model is a BPE without options that llama.cpp lacks."""
    if model["type"] != "BPE":
        raise DataError(
            f"tokenizer of type {model['type']}: only BPE can be exported to GGUF; {FIX}"
        )
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(option):
            raise DataError(
                f"tokenizer with {option}={model[option]}: not supported by the GGUF export; {FIX}"
            )


def _tokens(saved: Mapping[str, Any], rows: int) -> tuple[list[str], list[TokenKind]]:
    """Return the text and the type of each row of the table; rows without a token are unused."""
    model = saved["model"]
    tokens = [f"[PAD{index}]" for index in range(rows)]
    kinds = [TokenKind.UNUSED] * rows
    added = {token["id"]: token for token in saved["added_tokens"]}
    entries = model["vocab"] | {token["content"]: index for index, token in added.items()}
    if len(entries) > rows or max(entries.values()) >= rows:
        raise DataError(
            f"the tokenizer has {max(entries.values()) + 1} tokens, but the embedding table has {rows} rows; "
            "use the tokenizer that the model was trained with"
        )
    for text, index in entries.items():
        tokens[index] = text
        kinds[index] = TokenKind.NORMAL
        if model["byte_fallback"] and len(text) == len("<0x00>") and text.startswith("<0x"):
            kinds[index] = TokenKind.BYTE
        if index in added:
            is_special = added[index]["special"]
            kinds[index] = TokenKind.CONTROL if is_special else TokenKind.USER_DEFINED
        if text == model.get("unk_token"):
            kinds[index] = TokenKind.UNKNOWN
    return tokens, kinds


def _pre_tokenizer(saved: Mapping[str, Any]) -> str:
    """Return llama.cpp's name of the pre-tokenizer of a byte-level BPE."""
    normalizer = _parts(saved["normalizer"], "normalizers")
    if not saved["model"]["merges"] and normalizer == [{"type": "ByteLevel"}]:
        return "gpt-2"  # a byte tokenizer: it has no merges, so the splits do not matter
    pre_tokenizer = _without_offsets(saved["pre_tokenizer"])
    names = [name for name, known in PRE_TOKENIZERS.items() if known == pre_tokenizer]
    if not names or normalizer:
        key = "normalizer" if normalizer else "pre_tokenizer"
        shown = json.dumps(saved[key])
        if len(shown) > MAX_CHARACTERS:
            shown = f"{shown[:MAX_CHARACTERS]}..."
        raise DataError(
            f"tokenizer with {key}={shown}: not one that the GGUF export knows "
            f"({', '.join(PRE_TOKENIZERS)}, SentencePiece); {FIX}"
        )
    return names[0]


def _without_offsets(part: Any) -> Any:
    """Return the definition without `trim_offsets`, which does not change ids."""
    if isinstance(part, list):
        return [_without_offsets(each) for each in part]
    if isinstance(part, dict):
        return {
            key: _without_offsets(value) for key, value in part.items() if key != "trim_offsets"
        }
    return part


def _parts(step: Mapping[str, Any] | None, key: str) -> list[Any]:
    """Return the members of a sequence of normalizers; a single one is a sequence of one."""
    if step is None:
        return []
    return list(step[key]) if step["type"] == "Sequence" else [dict(step)]


def _adds_space_prefix(saved: Mapping[str, Any]) -> bool:
    """Return whether a SentencePiece tokenizer puts a space before the text.

    The library `tokenizers` does this and the replacement of spaces in the normalizer or, in newer files,
    in the pre-tokenizer.
    """
    normalizer = _parts(saved["normalizer"], "normalizers")
    pre_tokenizer = _without_offsets(saved["pre_tokenizer"])
    prepend = {"type": "Prepend", "prepend": SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    split = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False}
    if pre_tokenizer in (None, split) and normalizer in ([prepend, replace], [replace]):
        return normalizer[0] == prepend
    if not normalizer and pre_tokenizer is not None:
        metaspace = {"type": "Metaspace", "replacement": SPACE, "split": False}
        for scheme, adds in (("first", True), ("always", True), ("never", False)):
            if pre_tokenizer == {**metaspace, "prepend_scheme": scheme}:
                return adds
    raise DataError(
        f"tokenizer with normalizer={json.dumps(saved['normalizer'])} and "
        f"pre_tokenizer={json.dumps(pre_tokenizer)}: not a SentencePiece tokenizer that the GGUF export "
        f"knows; {FIX}"
    )


def _scores(tokens: Sequence[str], merges: Sequence[Sequence[str]]) -> list[float]:
    """Return the score of each token, from the order in which a SentencePiece BPE merges pairs.

    llama.cpp merges the adjacent pair whose joined token has the highest score, so all pairs of one token
    must have neighbouring ranks.

    Raises:
        DataError: if they do not, because llama.cpp would merge in another order.
    """
    rank: dict[str, int] = {}
    for token, _ in groupby("".join(pair) for pair in merges):
        if token in rank:
            raise DataError(
                f"tokenizer: the merges of the token {token!r} have no common rank, which llama.cpp "
                f"requires; {FIX}"
            )
        rank[token] = len(rank)
    return [-float(rank.get(token, 0)) for token in tokens]
