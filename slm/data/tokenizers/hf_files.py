"""Tokenizers of the library `tokenizers`: reading their files, training a new one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from slm.config.schema import TokenizerConfig
from slm.errors import DataError
from slm.files import stamp_of

END_OF_TEXT = "<|endoftext|>"
USUAL_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<s>", "<|begin_of_text|>")
LIBRARY_FILE = "tokenizer.json"


def open_library(path: Path) -> Any:
    """The `tokenizers.Tokenizer` of a tokenizer.json, or of a folder with one or with GPT-2's files.

    Raises:
        DataError: if there is none, or it is not in the library's format.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    files = files_of(path)
    try:
        if len(files) == 1:
            library = Tokenizer.from_file(str(files[0]))
            library.no_padding()  # a tokenizer of a chat model may come with either
            library.no_truncation()
            return library
        vocabulary, merges = map(str, files)
        library = Tokenizer(models.BPE.from_file(vocabulary, merges))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(
            f"tokenizer.path={path}: not a tokenizer of the library `tokenizers` ({error})"
        ) from None
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return library


def files_of(path: Path) -> list[Path]:
    """The file of a tokenizer, or the two of GPT-2's format.

    Raises:
        DataError: if there are none.
    """
    if path.is_file():
        return [path]
    if (path / LIBRARY_FILE).is_file():
        return [path / LIBRARY_FILE]
    pair = [sorted(path.glob(f"*{name}")) for name in ("vocab.json", "merges.txt")]
    if all(len(found) == 1 for found in pair):
        return [found[0] for found in pair]
    raise DataError(
        f"tokenizer.path={path}: holds no tokenizer; give a tokenizer.json, or a folder with one or "
        "with one vocab.json and one merges.txt"
    )


@dataclass(frozen=True)
class KnownFile:
    """What a run's identity and shape need of a tokenizer's file."""

    vocab_size: int
    eot_id: int
    content: str
    """Hash of what the tokenizer does, the same in either format."""


def known_file(config: TokenizerConfig) -> KnownFile:
    """Facts of a tokenizer's file, read once a process as long as it does not change.

    Raises:
        DataError: if it is not there or not a tokenizer.
    """
    assert config.path is not None, "load_config sees to it"
    path = Path(config.path)
    stamps = tuple((file, *stamp_of(file)) for file in files_of(path))
    return _known(path, config.end_of_text, stamps)


@lru_cache
def _known(path: Path, end_of_text: str | None, stamps: tuple[object, ...]) -> KnownFile:
    library = open_library(path)
    vocabulary = library.get_vocab(with_added_tokens=True)
    content = hashlib.sha256(library.to_str().encode()).hexdigest()
    eot_id = vocabulary[end_of_text_of(vocabulary, end_of_text)]
    return KnownFile(max(vocabulary.values()) + 1, eot_id, content)


def end_of_text_of(vocabulary: Mapping[str, int], asked: str | None) -> str:
    """The name of the token that begins a document.

    Raises:
        DataError: if the vocabulary has none of that name, or of the usual ones.
    """
    names = (asked,) if asked is not None else USUAL_NAMES
    found = next((name for name in names if name in vocabulary), None)
    if found is None:
        marked = sorted(name for name in vocabulary if name[:1] in "<[" and name[-1:] in ">]")
        raise DataError(
            f"tokenizer.end_of_text={asked or 'null'}: the vocabulary has no such token; name the one "
            f"that is to begin a document, perhaps one of: {', '.join(marked[:8]) or 'none is marked'}"
        )
    return found


def train_bpe(texts: Iterable[str], vocab_size: int) -> Any:
    """A byte-level BPE of exactly `vocab_size` entries, end-of-text last.

    Raises:
        DataError: if the text has too few distinct pairs for that many entries.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
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
    return library


def byte_characters() -> list[str]:
    """GPT-2's character for each byte: itself if printable in Latin-1, else one from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
