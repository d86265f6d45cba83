"""Tokenizers: bytes, ASCII with an escape, and those of the library `tokenizers`.

Every tokenizer is lossless and counts the bytes of text of a sequence of its tokens, so that bits per
byte are exact. Each document starts with the end-of-text token.
"""

from __future__ import annotations

import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slm.config.schema import Config, TokenizerConfig
from slm.data.khop import KHop
from slm.data.tokenizers.hf_files import (
    TOKENIZER_FILE,
    byte_characters,
    find_end_of_text,
    load_hf_tokenizer,
    read_tokenizer_file,
    train_bpe,
)
from slm.data.tokenizers.kinds import is_byte_level, long_text_rule, normalizer_name, unicode_form
from slm.errors import ConfigError, DataError, Problem
from slm.files import atomic_write, read_object, write_json

Ids = NDArray[np.integer]
ASCII_ALPHABET = bytes([*b"\t\n", *range(32, 127)])
PIECE_CHARACTERS = 1 << 20
MAX_QUOTED_CHARACTERS = 40
# GPT-2's pre-tokenizer splits here, as the one for SentencePiece does: splitting before encoding keeps the ids.
BETWEEN_WORDS = re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])")


class Tokenizer(ABC):
    """Converts text to token ids and back without loss.

    Attributes:
        vocab_size: number of ids.
        eot_id: id of the token before each text.
        normalizer: what changes a text before it is split, such as NFC; None if nothing does.
    """

    vocab_size: int
    eot_id: int
    normalizer: str | None = None

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of each text, without an end-of-text token."""

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the ids of one text, without an end-of-text token."""
        return self.encode_batch([text])[0].astype(np.int64)

    @abstractmethod
    def decode(self, ids: Ids) -> str:
        """Return the text of ids; end-of-text tokens are left out."""

    @abstractmethod
    def count_bytes(self, ids: Ids) -> int:
        """Return the number of UTF-8 bytes of text in consecutive tokens; end-of-text counts 0."""

    def normal_form(self, text: str) -> str:
        """Return the text in the Unicode normal form of the tokenizer, in which its bytes are counted."""
        return text

    def round_trips(self, text: str, ids: Ids) -> bool:
        """Return whether the ids decode to exactly this text."""
        return True

    def decode_documents(self, ids: Ids) -> list[bytes]:
        """Return the UTF-8 text of each document in a sequence of ids that starts with end-of-text."""
        ends = np.flatnonzero(np.asarray(ids) == self.eot_id)[1:]
        return [self.decode(document[1:]).encode() for document in np.split(ids, ends)]

    @abstractmethod
    def save(self, folder: Path) -> None: ...


class ByteTokenizer(Tokenizer):
    """Tokenizer whose ids are bytes (kind "byte") or positions in an alphabet of bytes ("ascii").

    A byte outside the alphabet becomes three tokens: an escape and the two halves of the byte, as ids
    0 to 15. Prose is 99.94% printable ASCII, so "ascii" needs about one token per byte with 99
    vocabulary entries instead of 257, which saves embedding parameters in small models.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self.alphabet = ASCII_ALPHABET if kind == "ascii" else bytes(range(256))
        self.escapes = kind == "ascii"
        self.escape_id = len(self.alphabet)  # used only if self.escapes
        self.vocab_size = len(self.alphabet) + self.escapes + 1
        self.eot_id = self.vocab_size - 1
        self._id_of_byte = np.full(256, self.escape_id, dtype=np.uint16)
        self._id_of_byte[list(self.alphabet)] = np.arange(len(self.alphabet))
        self._byte_of_id = np.frombuffer(self.alphabet, dtype=np.uint8)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        return [self._encode(text.encode()) for text in texts]

    def _encode(self, text: bytes) -> Ids:
        raw = np.frombuffer(text, dtype=np.uint8)
        ids = self._id_of_byte[raw]
        if not self.escapes:
            return ids
        escaped = np.flatnonzero(ids == self.escape_id)
        halves = np.stack([raw[escaped] >> 4, raw[escaped] & 15], axis=1).reshape(-1)
        return np.insert(ids, np.repeat(escaped + 1, 2), halves)

    def decode(self, ids: Ids) -> str:
        ids = np.asarray(ids, dtype=np.int64)
        ids = ids[ids != self.eot_id]
        if not self.escapes:
            return ids.astype(np.uint8).tobytes().decode(errors="replace")
        escapes = np.flatnonzero(ids[:-2] == self.escape_id)
        kept = self._is_text(ids)
        raw = self._byte_of_id[np.minimum(ids, len(self.alphabet) - 1)]
        raw[escapes] = ids[escapes + 1] << 4 | ids[escapes + 2]
        return raw[kept].tobytes().decode(errors="replace")

    def _is_text(self, ids: Ids) -> NDArray[np.bool_]:
        """Return a mask of the tokens that count as one byte: all but the two halves after an escape."""
        is_escape = np.asarray(ids) == self.escape_id if self.escapes else np.zeros(len(ids), bool)
        is_half = np.zeros(len(ids), dtype=bool)
        is_half[1:] |= is_escape[:-1]
        is_half[2:] |= is_escape[:-2]
        return ~is_half

    def count_bytes(self, ids: Ids) -> int:
        return int(np.count_nonzero(self._is_text(ids) & (np.asarray(ids) != self.eot_id)))

    def save(self, folder: Path) -> None:
        write_json(folder / TOKENIZER_FILE, {"kind": self.kind, "vocab_size": self.vocab_size})


class HFTokenizer(Tokenizer):
    """Tokenizer of the library `tokenizers`: a BPE trained by `train_bpe`, GPT-2's, Llama's ..."""

    def __init__(
        self, hf_tokenizer: Any, end_of_text: str | None = None, source: Path | None = None
    ):
        """Wrap a `tokenizers.Tokenizer`; `end_of_text=None` finds the token under its common names.

        `source` is the file or folder that error messages name.

        Raises:
            DataError: if the vocabulary has no such token.
        """
        self._hf_tokenizer = hf_tokenizer
        self._source = source
        # A document that contains the characters of a special token is encoded as ordinary text.
        self._hf_tokenizer.encode_special_tokens = True
        vocabulary = hf_tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self.end_of_text = find_end_of_text(vocabulary, end_of_text)
        self.eot_id = vocabulary[self.end_of_text]
        saved = json.loads(hf_tokenizer.to_str())
        self._is_byte_level = is_byte_level(saved)
        self._form: Any = unicode_form(saved)
        self.normalizer = None if saved["normalizer"] is None else normalizer_name(saved)
        self._long_text = long_text_rule(saved)
        if self._is_byte_level:
            self._build_byte_tables(vocabulary)

    def _build_byte_tables(self, vocabulary: Mapping[str, int]) -> None:
        """Build tables of the bytes of each id; byte-level BPE writes each byte as one character."""
        byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        added = self._hf_tokenizer.get_added_tokens_decoder()  # written as plain text, not as bytes
        entries = [b""] * self.vocab_size
        for entry, index in vocabulary.items():
            if index == self.eot_id:
                continue
            is_plain = index in added or not all(character in byte_of for character in entry)
            entries[index] = entry.encode() if is_plain else bytes(byte_of[c] for c in entry)
        self._bytes_of_id = np.array([len(entry) for entry in entries])
        self._offset_of_id = np.cumsum(self._bytes_of_id) - self._bytes_of_id
        self._entries = np.frombuffer(b"".join(entries), dtype=np.uint8)

    @property
    def adds_start_token(self) -> bool:
        """Whether transformers puts the end-of-text (or BOS) token before each text, as the file requests."""
        return self._hf_tokenizer.encode("").ids[:1] == [self.eot_id]

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        split_texts = [self._split_long_text(text) for text in texts]
        pieces = [piece for split_text in split_texts for piece in split_text]
        try:
            encodings = self._hf_tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        except Exception as error:  # `tokenizers` raises plain Exception
            raise self._encoding_error(pieces, error) from None
        ids = iter([np.asarray(encoding.ids, dtype=np.uint32) for encoding in encodings])
        return [np.concatenate([next(ids) for _ in split_text]) for split_text in split_texts]

    def _encoding_error(self, texts: Sequence[str], error: Exception) -> DataError:
        """Return the error for the first word that the vocabulary cannot encode: an unknown one without unk token."""
        text = next((t for t in texts if not self._can_encode(t)), "")
        word = next((w for w in text.split() if not self._can_encode(w)), text)
        return DataError(
            f"tokenizer {self._source or 'file'} ({type(self._hf_tokenizer.model).__name__}): cannot encode "
            f"{word[:MAX_QUOTED_CHARACTERS]!r} ({error}); add what is missing to its vocabulary, or use a tokenizer that "
            "encodes every text, such as tokenizer=bpe"
        )

    def _can_encode(self, text: str) -> bool:
        try:
            self._hf_tokenizer.encode(text, add_special_tokens=False)
        except Exception:  # `tokenizers` raises plain Exception
            return False
        return True

    def _split_long_text(self, text: str) -> list[str]:
        """Split a long text into pieces that encode to the same ids.

        `tokenizers` needs memory of about 100 times the size of one text.
        """
        if len(text) <= PIECE_CHARACTERS or self._long_text == "whole":
            return [text]
        pieces, start = [], 0
        while cut := BETWEEN_WORDS.search(text, start + PIECE_CHARACTERS):
            pieces.append(text[start : cut.start()])
            # Where a space is put before each text, that space replaces the one at the cut.
            start = cut.start() + (self._long_text == "prefixed")
        return [*pieces, text[start:]]

    def decode(self, ids: Ids) -> str:
        ids = np.asarray(ids)
        return self._hf_tokenizer.decode(
            ids[ids != self.eot_id].tolist(), skip_special_tokens=False
        )

    def normal_form(self, text: str) -> str:
        return text if self._form is None else unicodedata.normalize(self._form, text)

    def round_trips(self, text: str, ids: Ids) -> bool:
        if self._is_byte_level:  # can only drop bytes (those missing in the vocabulary)
            return self.count_bytes(ids) == len(text.encode())
        return self.decode(ids) == text

    def count_bytes(self, ids: Ids) -> int:
        ids = np.asarray(ids)
        if self._is_byte_level:
            return int(self._bytes_of_id[ids].sum())
        ends = np.flatnonzero(ids == self.eot_id)
        return sum(len(self.decode(part).encode()) for part in np.split(ids, ends) if len(part))

    def decode_documents(self, ids: Ids) -> list[bytes]:
        if not self._is_byte_level:
            return super().decode_documents(ids)
        ids = np.asarray(ids, dtype=np.int64)
        lengths = self._bytes_of_id[ids]
        ends = np.cumsum(lengths)
        source = np.repeat(self._offset_of_id[ids] - (ends - lengths), lengths)
        text = self._entries[source + np.arange(len(source))].tobytes()
        cuts = [0, *ends[np.flatnonzero(ids == self.eot_id)[1:]].tolist(), len(text)]
        return [text[start:end] for start, end in pairwise(cuts)]

    def definition(self) -> dict[str, Any]:
        """Return the content of its tokenizer.json."""
        return json.loads(self._hf_tokenizer.to_str())

    def save(self, folder: Path) -> None:
        with atomic_write(folder / TOKENIZER_FILE) as temporary:
            self._hf_tokenizer.save(str(temporary))


@dataclass(frozen=True)
class Vocabulary:
    """Properties of a tokenizer that a model's shape and document mask depend on."""

    size: int
    eot_id: int | None
    """End-of-text id; None for data without documents (khop)."""


def resolve_vocabulary(config: Config) -> Vocabulary:
    """Return the vocabulary of a run from its config, without reading any text.

    Raises:
        ConfigError: if tokenizer.kind=bpe has no tokenizer.vocab_size.
        DataError: if the tokenizer's file cannot be read.
    """
    tokenizer = config.tokenizer
    if tokenizer.kind == "symbols":
        return Vocabulary(KHop.from_config(config.data, config.model.seq_len).vocab_size, None)
    if tokenizer.kind == "bpe":
        if tokenizer.vocab_size is None:
            rule = "is required with tokenizer.kind=bpe"
            raise ConfigError([Problem("tokenizer.vocab_size", None, rule)])
        return Vocabulary(tokenizer.vocab_size, tokenizer.vocab_size - 1)
    if tokenizer.kind == "file":
        file = read_tokenizer_file(tokenizer)
        return Vocabulary(file.vocab_size, file.eot_id)
    byte_tokenizer = ByteTokenizer(tokenizer.kind)
    return Vocabulary(byte_tokenizer.vocab_size, byte_tokenizer.eot_id)


def fixed_tokenizer(config: TokenizerConfig) -> ByteTokenizer | HFTokenizer:
    """Return a tokenizer that needs no training: kind "ascii", "byte" or "file"."""
    if config.kind == "file":
        assert config.path is not None, "checked by load_config"
        path = Path(config.path)
        return HFTokenizer(load_hf_tokenizer(path), config.end_of_text, path)
    return ByteTokenizer(config.kind)


def build_tokenizer(config: TokenizerConfig, train_texts: Iterator[str], folder: Path) -> Tokenizer:
    """Build the tokenizer, train it on `train_texts` if it is a BPE, and save it to `folder`.

    Raises:
        DataError: if the text is too small for the vocabulary, or a file cannot be read.
    """
    if config.kind == "bpe":
        assert config.vocab_size is not None
        tokenizer: Tokenizer = HFTokenizer(train_bpe(train_texts, config.vocab_size))
    else:
        tokenizer = fixed_tokenizer(config)
    tokenizer.save(folder)
    return tokenizer


def _byte_tokenizer(path: Path, saved: Mapping[str, Any]) -> ByteTokenizer:
    kind = saved["kind"]
    if kind not in ("ascii", "byte"):
        raise DataError(f"{path}: kind={kind!r} is no tokenizer; it must be ascii or byte")
    tokenizer = ByteTokenizer(kind)
    if saved.get("vocab_size") != tokenizer.vocab_size:
        raise DataError(
            f"{path}: vocab_size={saved.get('vocab_size')!r}, but kind={kind} has {tokenizer.vocab_size} entries; copy the "
            "file of the prepared data"
        )
    return tokenizer


def load_tokenizer(folder: Path, end_of_text: str | None = None) -> Tokenizer:
    """Load the tokenizer that was saved to `folder`.

    Raises:
        DataError: if its file cannot be read.
    """
    saved = read_object(
        folder / TOKENIZER_FILE,
        "copy the one of the prepared data, in the folder that data.json names",
    )
    if "kind" in saved:
        return _byte_tokenizer(folder / TOKENIZER_FILE, saved)
    return HFTokenizer(
        load_hf_tokenizer(folder / TOKENIZER_FILE), end_of_text, folder / TOKENIZER_FILE
    )
