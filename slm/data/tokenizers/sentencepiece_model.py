"""Conversion of SentencePiece models (`tokenizer.model`) to tokenizers of the library `tokenizers`.

A BPE model of SentencePiece merges the adjacent pair whose joined piece has the highest score, and spells
characters outside of its vocabulary in bytes. The same ids come from a BPE of `tokenizers` with one merge for
every way to split a piece into two pieces, in order of score. Spaces become U+2581 first, and one more is put
before a text that is not empty (`add_dummy_prefix`); the decoder removes it again.

Only models that lose nothing are converted: byte fallback, no normalization of the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slm.data.tokenizers.kinds import SPACE, WORDS
from slm.errors import DataError

BPE = 2  # TrainerSpec.ModelType
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # ModelProto.SentencePiece.Type
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
    model = _parse(path)
    _check_kind(model, path)
    tokenizer = _build(model)
    _check_probes(tokenizer, model, path)
    return tokenizer


def _parse(path: Path) -> Any:
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:
        raise _error(
            path,
            "a SentencePiece model; reading it needs the packages sentencepiece and protobuf: run pip install "
            "-e '.[sentencepiece]' in the repository",
        ) from None
    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception:  # DecodeError, whose module depends on the version of protobuf
        model.Clear()
    if not model.pieces:
        raise _error(path, "not a SentencePiece model, or damaged; download it again")
    return model


def _check_kind(model: Any, path: Path) -> None:
    """Raise DataError for models whose ids or texts would not be the same after conversion."""
    kind, rule = model.trainer_spec, model.normalizer_spec
    kinds = {
        f"pieces of type {piece.type} (such as {piece.piece!r})": piece.type
        not in {NORMAL, UNKNOWN, CONTROL, BYTE}
        for piece in model.pieces
    }
    unsupported = {
        "model_type other than BPE": kind.model_type != BPE,
        "no byte fallback": not kind.byte_fallback,
        f"normalization {rule.name!r}": bool(rule.precompiled_charsmap),
        "remove_extra_whitespaces": rule.remove_extra_whitespaces,
        "escape_whitespaces=false": not rule.escape_whitespaces,
        "treat_whitespace_as_suffix": kind.treat_whitespace_as_suffix,
        **kinds,
    }
    if found := next((name for name, is_set in unsupported.items() if is_set), None):
        raise _error(
            path,
            f"SentencePiece model with {found}, which slm does not convert (BPE with byte fallback and without "
            "normalization is converted, as in Llama 2 and MobileLLM)",
        )


def _build(model: Any) -> Any:
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
    )

    pieces = {piece.piece: index for index, piece in enumerate(model.pieces)}
    unknown = next((piece.piece for piece in model.pieces if piece.type == UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=pieces,
            merges=list(_merges(model)),
            byte_fallback=True,
            fuse_unk=True,
            unk_token=unknown,
        )
    )
    prefix = model.normalizer_spec.add_dummy_prefix
    to_pieces: list[Any] = [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*to_pieces, normalizers.Replace(" ", SPACE)])
    if not any(SPACE in piece.lstrip(SPACE) for piece in pieces):
        # Same ids, and words are cached: without it each text is one word.
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), "isolated")
    to_text: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(
        [*to_text, *([decoders.Strip(" ", 1, 0)] if prefix else [])]
    )
    special = [piece.piece for piece in model.pieces if piece.type in {UNKNOWN, CONTROL}]
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in special]
    )
    return tokenizer


def _merges(model: Any) -> Iterator[tuple[str, str]]:
    """Yield the pairs that join to a piece, by falling score of the piece."""
    normal = {piece.piece: piece.score for piece in model.pieces if piece.type == NORMAL}
    for piece in sorted(normal, key=lambda name: -normal[name]):
        splits = ((piece[:cut], piece[cut:]) for cut in range(len(piece) - 1, 0, -1))
        yield from (pair for pair in splits if pair[0] in normal and pair[1] in normal)


def _check_probes(tokenizer: Any, model: Any, path: Path) -> None:
    """Compare with SentencePiece itself."""
    from sentencepiece import SentencePieceProcessor

    tokenizer.encode_special_tokens = True
    processor = SentencePieceProcessor(model_proto=model.SerializeToString())
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
