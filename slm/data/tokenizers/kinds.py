"""Properties of a saved `tokenizers.Tokenizer`: whether it is lossless, and where a long text can be split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

SPACE = "\u2581"  # in the vocabulary of SentencePiece
WORDS = f"{SPACE}*[^{SPACE}]+|{SPACE}+"
"""Pattern of pre-tokens that share no piece, if no piece of the vocabulary holds a space after another character."""

UNICODE_FORMS = ("NFC", "NFKC", "NFD", "NFKD")
LongText = Literal["whole", "split", "prefixed"]


def is_byte_level(saved: Mapping[str, Any]) -> bool:
    """Return whether a tokenizer maps every byte to a character and changes nothing else.

    That is byte-level BPE without a normalizer: GPT-2's, SmolLM2's (which splits digits first), Llama 3's.
    """
    steps = _pre_tokenizers(saved)
    byte_level = [step for step in steps if step["type"] == "ByteLevel"]
    others = [step for step in steps if step["type"] != "ByteLevel"]
    return (
        saved["normalizer"] is None
        and len(byte_level) == 1
        and not byte_level[0]["add_prefix_space"]
        and all(_only_splits(step) for step in others)
        and (saved["decoder"] or {}).get("type") == "ByteLevel"
    )


def unicode_form(saved: Mapping[str, Any]) -> str | None:
    """Return the Unicode normal form that a tokenizer brings text into first, such as NFC; None if there is none."""
    normalizer = saved["normalizer"] or {}
    steps = normalizer.get("normalizers", [normalizer])
    return next((step["type"] for step in steps if step.get("type") in UNICODE_FORMS), None)


def normalizer_name(saved: Mapping[str, Any]) -> str:
    """Return the types of a tokenizer's normalizers, for messages."""
    normalizer = saved["normalizer"]
    return " and ".join(step["type"] for step in normalizer.get("normalizers", [normalizer]))


def long_text_rule(saved: Mapping[str, Any]) -> LongText:
    """Return how a long text can be cut between a letter and a space that a letter follows, with the same ids.

    "split": anywhere there, as with GPT-2's pattern. "prefixed": without that space, because the tokenizer puts a
    space before each text (SentencePiece). "whole": unknown.
    """
    steps = _pre_tokenizers(saved)
    if is_byte_level(saved):
        has_gpt2_pattern = any(s["type"] == "ByteLevel" and s.get("use_regex", True) for s in steps)
        only_digits = all(step["type"] in {"ByteLevel", "Digits"} for step in steps)
        return "split" if has_gpt2_pattern and only_digits else "whole"
    normalizers = (saved["normalizer"] or {}).get("normalizers", [])
    kinds = [(step["type"], step.get("prepend", step.get("content"))) for step in normalizers]
    is_sentencepiece = kinds == [("Prepend", SPACE), ("Replace", SPACE)]
    splits_words = [step.get("pattern") for step in steps] == [{"Regex": WORDS}]
    return "prefixed" if is_sentencepiece and splits_words else "whole"


def _pre_tokenizers(saved: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    first = saved["pre_tokenizer"] or {"type": "Sequence", "pretokenizers": []}
    return first["pretokenizers"] if first["type"] == "Sequence" else [first]


def _only_splits(step: Mapping[str, Any]) -> bool:
    return step["type"] == "Digits" or (
        step["type"] == "Split"
        and step["behavior"] in {"Isolated", "MergedWithPrevious", "MergedWithNext"}
    )
