"""Text to token ids and back: all bytes, ASCII with an escape, or byte-level BPE.

Every tokenizer is lossless and knows how many bytes of text a run of its tokens stands for, so
that bits per byte are exact. The last id is the end-of-text token, which starts each document.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slm.errors import ConfigError, DataError, Problem
from slm.files import read_json, write_json
from slm.schema import TokenizerConfig

Ids = NDArray[np.integer]
END_OF_TEXT = "<|endoftext|>"
ASCII_ALPHABET = bytes([*b"\t\n", *range(32, 127)])
FILE_NAME = "tokenizer.json"


class Tokenizer(ABC):
    vocab_size: int

    @property
    def eot_id(self) -> int:
        return self.vocab_size - 1

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[Ids]: ...

    @abstractmethod
    def decode(self, ids: Ids) -> str: ...

    @abstractmethod
    def count_bytes(self, ids: Ids) -> int:
        """UTF-8 bytes of text that these consecutive tokens stand for; end-of-text is 0."""

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


class BpeTokenizer(Tokenizer):
    """Byte-level BPE of the library `tokenizers`."""

    def __init__(self, path: Path):
        from tokenizers import Tokenizer as LibraryTokenizer

        self._library = LibraryTokenizer.from_file(str(path))
        self._library.encode_special_tokens = True  # a document that spells one spells text
        self.vocab_size = self._library.get_vocab_size()
        self._bytes_of_id = self._count_bytes_of_ids()

    def _count_bytes_of_ids(self) -> NDArray[np.int64]:
        # Byte-level BPE spells each byte as one character, so an entry's length is its bytes.
        vocabulary = self._library.get_vocab()
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for entry, index in vocabulary.items():
            lengths[index] = 0 if entry == END_OF_TEXT else len(entry)
        return lengths

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, folder: Path) -> BpeTokenizer:
        """Train on `texts` to exactly `vocab_size` entries, end-of-text last.

        Raises:
            DataError: if the text has too few distinct pairs for that many entries.
        """
        from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as LibraryTokenizer

        library = LibraryTokenizer(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        library.train_from_iterator(texts, trainer)
        library.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
        if library.get_vocab_size() != vocab_size:
            raise DataError(
                f"tokenizer.vocab_size={vocab_size}: the training text supports only "
                f"{library.get_vocab_size()} entries; ask for that or use more text"
            )
        library.save(str(folder / FILE_NAME))
        return cls(folder / FILE_NAME)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        encodings = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.uint16) for encoding in encodings]

    def decode(self, ids: Ids) -> str:
        return self._library.decode(np.asarray(ids).tolist())

    def count_bytes(self, ids: Ids) -> int:
        return int(self._bytes_of_id[np.asarray(ids)].sum())

    def save(self, folder: Path) -> None:
        self._library.save(str(folder / FILE_NAME))


def known_vocab_size(config: TokenizerConfig) -> int:
    """The vocabulary that a tokenizer will have, known before any text is read.

    Raises:
        ConfigError: for a bpe without a size.
    """
    if config.kind != "bpe":
        return ByteTokenizer(config.kind).vocab_size
    if config.vocab_size is None:
        raise ConfigError([Problem("tokenizer.vocab_size", None, "is needed for a bpe")])
    return config.vocab_size


def build_tokenizer(config: TokenizerConfig, train_texts: Iterator[str], folder: Path) -> Tokenizer:
    """Make the tokenizer (a bpe is trained on the training split alone) and save it to `folder`."""
    if config.kind == "bpe":
        return BpeTokenizer.train(train_texts, known_vocab_size(config), folder)
    tokenizer = ByteTokenizer(config.kind)
    tokenizer.save(folder)
    return tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that was saved to `folder`."""
    saved = read_json(folder / FILE_NAME)
    if "kind" in saved:
        return ByteTokenizer(saved["kind"])
    return BpeTokenizer(folder / FILE_NAME)
