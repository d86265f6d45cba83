"""Text to token ids and back: bytes, ASCII with an escape, or what the library `tokenizers` reads.

Every tokenizer is lossless and knows how many bytes of text a run of its tokens stands for, so
that bits per byte are exact. Each document starts with the end-of-text token.
"""

from __future__ import annotations

import json
import re
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
    LIBRARY_FILE,
    byte_characters,
    end_of_text_of,
    known_file,
    open_library,
    train_bpe,
)
from slm.errors import ConfigError, Problem
from slm.files import read_json, replacing, write_json

Ids = NDArray[np.integer]
ASCII_ALPHABET = bytes([*b"\t\n", *range(32, 127)])
FILE_NAME = LIBRARY_FILE  # of a tokenizer of bytes or characters too
PIECE_CHARACTERS = 1 << 20
# Between two words GPT-2's pattern always cuts, so text may be cut there before it is encoded.
BETWEEN_WORDS = re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])")


class Tokenizer(ABC):
    vocab_size: int
    eot_id: int

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[Ids]: ...

    @abstractmethod
    def decode(self, ids: Ids) -> str: ...

    @abstractmethod
    def count_bytes(self, ids: Ids) -> int:
        """UTF-8 bytes of text that these consecutive tokens stand for; end-of-text is 0."""

    def holds(self, text: str, ids: Ids) -> bool:
        """Whether the tokens of a text give it back."""
        return True

    def decode_documents(self, ids: Ids) -> list[bytes]:
        """The text of each document in a run of tokens that begins with end-of-text."""
        ends = np.flatnonzero(np.asarray(ids) == self.eot_id)[1:]
        return [self.decode(document[1:]).encode() for document in np.split(ids, ends)]

    @abstractmethod
    def save(self, folder: Path) -> None: ...


class ByteTokenizer(Tokenizer):
    """Ids are bytes, or positions in an alphabet of bytes.

    With an alphabet, a byte outside of it becomes three tokens: an escape and the two halves of the
    byte, written with the first 16 ids. Prose is 99.94% printable ASCII, so this is nearly one
    token a byte at 99 entries instead of 257; small models spend fewer parameters on the table.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self.alphabet = ASCII_ALPHABET if kind == "ascii" else bytes(range(256))
        self.escapes = kind == "ascii"
        self.escape_id = len(self.alphabet)  # in use only if self.escapes
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
        """Tokens that stand for one byte; the two halves after an escape stand for none."""
        is_escape = np.asarray(ids) == self.escape_id if self.escapes else np.zeros(len(ids), bool)
        is_half = np.zeros(len(ids), dtype=bool)
        is_half[1:] |= is_escape[:-1]
        is_half[2:] |= is_escape[:-2]
        return ~is_half

    def count_bytes(self, ids: Ids) -> int:
        return int(np.count_nonzero(self._is_text(ids) & (np.asarray(ids) != self.eot_id)))

    def save(self, folder: Path) -> None:
        write_json(folder / FILE_NAME, {"kind": self.kind, "vocab_size": self.vocab_size})


class LibraryTokenizer(Tokenizer):
    """A tokenizer of the library `tokenizers`: a BPE of ours, GPT-2's, Llama's ..."""

    def __init__(self, library: Any, end_of_text: str | None = None):
        """`end_of_text` names the token that begins a document; None finds it.

        Raises:
            DataError: if there is no such token.
        """
        self._library = library
        self._library.encode_special_tokens = True  # a document that spells one spells text
        vocabulary = library.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self.end_of_text = end_of_text_of(vocabulary, end_of_text)
        self.eot_id = vocabulary[self.end_of_text]
        self._is_byte_level = _is_plain_byte_level(library)
        if self._is_byte_level:
            self._tabulate(vocabulary)

    def _tabulate(self, vocabulary: Mapping[str, int]) -> None:
        """Byte-level BPE spells each byte as one character: entries are runs of bytes."""
        byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        entries = [b""] * self.vocab_size
        for entry, index in vocabulary.items():
            if index != self.eot_id and all(character in byte_of for character in entry):
                entries[index] = bytes(byte_of[character] for character in entry)
            elif index != self.eot_id:  # an added token stands for what it spells
                entries[index] = entry.encode()
        self._bytes_of_id = np.array([len(entry) for entry in entries])
        self._offset_of_id = np.cumsum(self._bytes_of_id) - self._bytes_of_id
        self._entries = np.frombuffer(b"".join(entries), dtype=np.uint8)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        cuts = [self._pieces(text) for text in texts]
        pieces = [piece for cut in cuts for piece in cut]
        encodings = self._library.encode_batch_fast(pieces, add_special_tokens=False)
        ids = iter([np.asarray(encoding.ids, dtype=np.uint32) for encoding in encodings])
        return [np.concatenate([next(ids) for _ in cut]) for cut in cuts]

    def _pieces(self, text: str) -> list[str]:
        """A long text in pieces that encode to the same ids: the library needs 100 times its size."""
        if len(text) <= PIECE_CHARACTERS or not self._is_byte_level:
            return [text]
        pieces, start = [], 0
        while cut := BETWEEN_WORDS.search(text, start + PIECE_CHARACTERS):
            pieces.append(text[start : cut.start()])
            start = cut.start()
        return [*pieces, text[start:]]

    def decode(self, ids: Ids) -> str:
        ids = np.asarray(ids)
        return self._library.decode(ids[ids != self.eot_id].tolist(), skip_special_tokens=False)

    def holds(self, text: str, ids: Ids) -> bool:
        if self._is_byte_level:  # it drops a byte that is not in its vocabulary, and changes none
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

    def save(self, folder: Path) -> None:
        with replacing(folder / FILE_NAME) as temporary:
            self._library.save(str(temporary))


def _is_plain_byte_level(library: Any) -> bool:
    """Whether text is cut by GPT-2's pattern and nothing rewrites it before or after."""
    saved = json.loads(library.to_str())
    first = saved["pre_tokenizer"] or {}
    return (
        saved["normalizer"] is None
        and first.get("type") == "ByteLevel"
        and first.get("use_regex", True)
        and not first["add_prefix_space"]
        and (saved["decoder"] or {}).get("type") == "ByteLevel"
    )


@dataclass(frozen=True)
class Vocabulary:
    """What the shape of a model and its document mask need to know of a tokenizer."""

    size: int
    eot_id: int | None
    """None where there are no documents."""


def known_vocabulary(config: Config) -> Vocabulary:
    """The vocabulary that a run will have, known before any text is read.

    Raises:
        ConfigError: for a bpe without a size.
        DataError: if the file of a tokenizer cannot be read.
    """
    tokenizer = config.tokenizer
    if tokenizer.kind == "symbols":
        return Vocabulary(KHop.of(config.data, config.model.seq_len).vocab_size, None)
    if tokenizer.kind == "bpe":
        if tokenizer.vocab_size is None:
            raise ConfigError([Problem("tokenizer.vocab_size", None, "is needed for a bpe")])
        return Vocabulary(tokenizer.vocab_size, tokenizer.vocab_size - 1)
    if tokenizer.kind == "file":
        known = known_file(tokenizer)
        return Vocabulary(known.vocab_size, known.eot_id)
    ours = ByteTokenizer(tokenizer.kind)
    return Vocabulary(ours.vocab_size, ours.eot_id)


def fixed_tokenizer(config: TokenizerConfig) -> ByteTokenizer | LibraryTokenizer:
    """A tokenizer that needs no training."""
    if config.kind == "file":
        assert config.path is not None, "load_config sees to it"
        return LibraryTokenizer(open_library(Path(config.path)), config.end_of_text)
    return ByteTokenizer(config.kind)


def build_tokenizer(config: TokenizerConfig, train_texts: Iterator[str], folder: Path) -> Tokenizer:
    """Make the tokenizer (a bpe is trained on the training split alone) and save it to `folder`.

    Raises:
        DataError: if the text does not support the vocabulary, or a file cannot be read.
    """
    if config.kind == "bpe":
        assert config.vocab_size is not None
        tokenizer: Tokenizer = LibraryTokenizer(train_bpe(train_texts, config.vocab_size))
    else:
        tokenizer = fixed_tokenizer(config)
    tokenizer.save(folder)
    return tokenizer


def load_tokenizer(folder: Path, end_of_text: str | None = None) -> Tokenizer:
    """The tokenizer that was saved to `folder`."""
    saved = read_json(folder / FILE_NAME)
    if "kind" in saved:
        return ByteTokenizer(saved["kind"])
    return LibraryTokenizer(open_library(folder / FILE_NAME), end_of_text)
