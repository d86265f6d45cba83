"""Conversion of SentencePiece models (`tokenizer.model`) to tokenizers of the library `tokenizers`.

A BPE model of SentencePiece merges the adjacent pair whose joined piece has the highest score, and spells
characters outside of its vocabulary in bytes. The same ids come from a BPE of `tokenizers` with one merge for
every way to split a piece into two pieces, in order of score. Spaces become U+2581 first, and one more is put
before a text that is not empty (`add_dummy_prefix`); the decoder removes it again.

Only models that lose nothing are converted: byte fallback, no normalization of the text.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slm.data.tokenizers.kinds import SPACE, WORDS
from slm.data.tokenizers.sentencepiece_file import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    SentencePieceModel,
    parse_model,
)
from slm.errors import DataError

# Compared in both implementations when a model is converted; every kind of piece occurs.
PROBES = (
    "Deep or wide?  Two spaces,\tone tab,\n\na blank line; 1,234.5 numbers don't.",
    " \u0e01\u4e16\u754c na\u00efve caf\u00e9 \U0001f600 <s> </s> <unk> <0x41> ",
    "   aaaa bbbbb cccccc   the then there's others   ",
)


def load_sentencepiece(path: Path) -> Any:
    """Read a SentencePiece model and return a `tokenizers.Tokenizer` that gives the same ids.

    Raises:
        DataError: if the file is damaged or of a kind that is not converted, or the package `sentencepiece` is
            missing; the message says how to convert the file.
    """
    content = path.read_bytes()
    processor_class = _require_sentencepiece(path)
    try:
        model = parse_model(content)
    except (ValueError, KeyError, struct.error):
        raise _error(path, "not a SentencePiece model, or damaged; download it again") from None
    _check_kind(model, path)
    tokenizer = _build(model)
    _check_probes(tokenizer, processor_class(model_proto=content), path)
    return tokenizer


def _require_sentencepiece(path: Path) -> Any:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise _error(
            path,
            "a SentencePiece model, which needs the package sentencepiece: run pip install -e '.[sentencepiece]' in "
            "the repository",
        ) from None
    return SentencePieceProcessor


def _check_kind(model: SentencePieceModel, path: Path) -> None:
    """Raise DataError for models whose ids or texts would not be the same after conversion."""
    known = {NORMAL, UNKNOWN, CONTROL, BYTE}
    other = next((piece for piece in model.pieces if piece.kind not in known), None)
    unsupported = {
        "model_type other than BPE": model.model_type != BPE,
        "no byte fallback": not model.byte_fallback,
        f"normalization {model.normalization!r}": model.has_character_map,
        "remove_extra_whitespaces": model.remove_extra_whitespaces,
        "escape_whitespaces=false": not model.escape_whitespaces,
        "treat_whitespace_as_suffix": model.treat_whitespace_as_suffix,
        f"pieces of type {other and other.kind} (such as {other and other.text!r})": other
        is not None,
    }
    if found := next((name for name, is_set in unsupported.items() if is_set), None):
        raise _error(
            path,
            f"SentencePiece model with {found}, which slm does not convert (BPE with byte fallback and without "
            "normalization is converted, as in Llama 2 and MobileLLM)",
        )


def _build(model: SentencePieceModel) -> Any:
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
    )

    pieces = {piece.text: index for index, piece in enumerate(model.pieces)}
    unknown = next((piece.text for piece in model.pieces if piece.kind == UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=pieces,
            merges=list(_merges(model)),
            byte_fallback=True,
            fuse_unk=True,
            unk_token=unknown,
        )
    )
    prefix = model.add_dummy_prefix
    to_pieces: list[Any] = [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*to_pieces, normalizers.Replace(" ", SPACE)])
    if not any(SPACE in piece.lstrip(SPACE) for piece in pieces):
        # Same ids, and words are cached: without it each text is one word.
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), "isolated")
    to_text: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(
        [*to_text, *([decoders.Strip(" ", 1, 0)] if prefix else [])]
    )
    special = [piece.text for piece in model.pieces if piece.kind in {UNKNOWN, CONTROL}]
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in special]
    )
    return tokenizer


def _merges(model: SentencePieceModel) -> Iterator[tuple[str, str]]:
    """Yield the pairs that join to a piece, by falling score of the piece."""
    normal = {piece.text: piece.score for piece in model.pieces if piece.kind == NORMAL}
    for piece in sorted(normal, key=lambda name: -normal[name]):
        splits = ((piece[:cut], piece[cut:]) for cut in range(len(piece) - 1, 0, -1))
        yield from (pair for pair in splits if pair[0] in normal and pair[1] in normal)


def _check_probes(tokenizer: Any, processor: Any, path: Path) -> None:
    """Compare the ids of a few texts with those of SentencePiece itself."""
    tokenizer.encode_special_tokens = True
    for text in PROBES:
        if tokenizer.encode(text, add_special_tokens=False).ids != processor.encode(text):
            raise _error(
                path, f"the converted tokenizer gives other ids than SentencePiece for {text!r}"
            )


def _error(path: Path, problem: str) -> DataError:
    return DataError(
        f"{path}: {problem}; or give a tokenizer.json, which transformers writes: "
        "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
    )
