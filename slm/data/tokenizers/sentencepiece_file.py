"""Reader of SentencePiece's file format, a protobuf message `ModelProto`.

The package `sentencepiece` contains generated code for it, but that code fails at import with a `protobuf` package
older than its generator. The fields used here have had the same numbers since SentencePiece 0.1.9.

Source: sentencepiece_model.proto (google/sentencepiece); protobuf encoding, protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

BPE = 2  # TrainerSpec.ModelType
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # ModelProto.SentencePiece.Type
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types
FIXED_BYTES = {FIXED64: 8, FIXED32: 4}
VARINT_BYTES = 10  # at most

Value = int | bytes


@dataclass(frozen=True)
class Piece:
    """An entry of the vocabulary; its id is its position."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """The fields of a `ModelProto` that decide how text is encoded."""

    pieces: list[Piece]
    model_type: int
    byte_fallback: bool
    treat_whitespace_as_suffix: bool
    normalization: str
    has_character_map: bool
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool


def parse_model(content: bytes) -> SentencePieceModel:
    """Parse the content of a `tokenizer.model`.

    Raises:
        ValueError: if it is no complete `ModelProto`.
    """
    pieces: list[Piece] = []
    parts: dict[int, dict[int, Value]] = {}
    for number, value in _fields(content):
        if isinstance(value, bytes) and number == 1:
            fields = dict(_fields(value))
            score = struct.unpack("<f", _bytes(fields.get(2, bytes(4))))[0]
            pieces.append(Piece(_bytes(fields[1]).decode(), score, int(fields.get(3, NORMAL))))
        elif isinstance(value, bytes) and number in {2, 3}:
            parts[number] = dict(_fields(value))
    if not pieces or len(parts) < 2:
        raise ValueError("pieces, trainer_spec or normalizer_spec is missing")
    trainer, normalizer = parts[2], parts[3]
    return SentencePieceModel(
        pieces=pieces,
        model_type=int(trainer.get(3, 1)),
        byte_fallback=bool(trainer.get(35, False)),
        treat_whitespace_as_suffix=bool(trainer.get(24, False)),
        normalization=_bytes(normalizer.get(1, b"")).decode(),
        has_character_map=bool(normalizer.get(2, b"")),
        add_dummy_prefix=bool(normalizer.get(3, True)),
        remove_extra_whitespaces=bool(normalizer.get(4, True)),
        escape_whitespaces=bool(normalizer.get(5, True)),
    )


def _fields(message: bytes) -> Iterator[tuple[int, Value]]:
    """Yield the number and value of each field: an int for a varint, else bytes."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        wire_type = tag & 7
        if wire_type == VARINT:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        if wire_type == LENGTH:
            size, position = _varint(message, position)
        elif wire_type in FIXED_BYTES:
            size = FIXED_BYTES[wire_type]
        else:
            raise ValueError(f"wire type {wire_type}")
        if position + size > len(message):
            raise ValueError("truncated")
        yield tag >> 3, message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """Return the variable-length integer at a position, and the position after it."""
    value = 0
    for index, byte in enumerate(message[position : position + VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError("truncated, or no integer")


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number instead of bytes")
    return value
