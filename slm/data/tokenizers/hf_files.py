"""Tokenizers of the Hugging Face library `tokenizers`: reading their files, training a BPE.

A SentencePiece model is converted when it is read (`slm.data.tokenizers.sentencepiece_model`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from slm.config.schema import TokenizerConfig
from slm.data.tokenizers.sentencepiece_model import load_sentencepiece
from slm.errors import DataError
from slm.files import check_not_lfs_pointer, size_and_mtime

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_NAMES = (
    END_OF_TEXT,
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "[EOS]",
    "<s>",
    "<|begin_of_text|>",
)
TOKENIZER_FILE = "tokenizer.json"  # also of a tokenizer of bytes or characters
SENTENCEPIECE_FILE = "tokenizer.model"


def load_hf_tokenizer(path: Path) -> Any:
    """Load a `tokenizers.Tokenizer` from a file, or from a folder with a tokenizer (`find_tokenizer_files`).

    Raises:
        DataError: if the files are missing or in no known format.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    files = find_tokenizer_files(path)
    for file in files:
        check_not_lfs_pointer(file)
    if files[0].suffix == Path(SENTENCEPIECE_FILE).suffix:
        return load_sentencepiece(files[0])
    try:
        if len(files) == 1:
            tokenizer = Tokenizer.from_file(str(files[0]))
            tokenizer.no_padding()  # files of chat models may enable padding and truncation
            tokenizer.no_truncation()
            return tokenizer
        vocabulary, merges = map(str, files)
        tokenizer = Tokenizer(models.BPE.from_file(vocabulary, merges))
    except Exception as error:  # `tokenizers` raises plain Exception
        raise DataError(
            f"{files[0]}: not a tokenizer of the library `tokenizers` ({error}); give a "
            "tokenizer.json, a tokenizer.model, or a folder with vocab.json and merges.txt"
        ) from None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def find_tokenizer_files(path: Path) -> list[Path]:
    """Return the path of tokenizer.json, else of tokenizer.model, else of GPT-2's vocab.json and merges.txt.

    Raises:
        DataError: if there are none.
    """
    if path.is_file():
        return [path]
    for name in (TOKENIZER_FILE, SENTENCEPIECE_FILE):
        if (path / name).is_file():
            return [path / name]
    pair = [sorted(path.glob(f"*{name}")) for name in ("vocab.json", "merges.txt")]
    if all(len(found) == 1 for found in pair):
        return [found[0] for found in pair]
    raise DataError(
        f"tokenizer.path={path}: no tokenizer found; give a tokenizer.json, a tokenizer.model, a "
        "folder that contains either, or a folder with one vocab.json and one merges.txt"
    )


@dataclass(frozen=True)
class TokenizerFile:
    """Properties of a tokenizer's file that a run's identity and model shape depend on."""

    vocab_size: int
    eot_id: int
    content: str
    """Hash of the tokenizer, equal for the same tokenizer in either file format."""


def read_tokenizer_file(config: TokenizerConfig) -> TokenizerFile:
    """Read the properties of a tokenizer's file; cached in memory until the file changes.

    Raises:
        DataError: if the file is missing or not a tokenizer.
    """
    assert config.path is not None, "checked by load_config"
    path = Path(config.path)
    stamps = tuple((file, *size_and_mtime(file)) for file in find_tokenizer_files(path))
    return _read_cached(path, config.end_of_text, stamps)


@lru_cache
def _read_cached(path: Path, end_of_text: str | None, stamps: tuple[object, ...]) -> TokenizerFile:
    tokenizer = load_hf_tokenizer(path)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    content = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
    eot_id = vocabulary[find_end_of_text(vocabulary, end_of_text)]
    return TokenizerFile(max(vocabulary.values()) + 1, eot_id, content)


def find_end_of_text(vocabulary: Mapping[str, int], requested: str | None) -> str:
    """Return the token that starts each document: the requested one, or the first common name found.

    Raises:
        DataError: if the vocabulary has no such token.
    """
    names = (requested,) if requested is not None else END_OF_TEXT_NAMES
    found = next((name for name in names if name in vocabulary), None)
    if found is None:
        special = sorted(name for name in vocabulary if name[:1] in "<[" and name[-1:] in ">]")
        candidates = f", for example {', '.join(special[:8])}" if special else ""
        rule = (
            "no such token in the vocabulary" if requested else "no common end-of-text token found"
        )
        raise DataError(
            f"tokenizer.end_of_text={requested or 'null'}: {rule}; set it to the token that starts each "
            f"document{candidates}"
        )
    return found


def train_bpe(texts: Iterable[str], vocab_size: int) -> Any:
    """Train a byte-level BPE with exactly `vocab_size` entries, end-of-text last.

    Raises:
        DataError: if the text has too few distinct pairs for that many entries.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    if tokenizer.get_vocab_size() != vocab_size:
        raise DataError(
            f"tokenizer.vocab_size={vocab_size}: the training text supports only "
            f"{tokenizer.get_vocab_size()} entries; reduce vocab_size or use more text"
        )
    return tokenizer


def byte_characters() -> list[str]:
    """Return GPT-2's character for each byte: Latin-1 if printable, else code points from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
