"""Reading of the weights of a checkpoint folder, one tensor at a time.

The folder contains model.safetensors or pytorch_model.bin, or shards of either kind with an index. Torch files are
read with `weights_only`, so that no pickled code runs. Only the tensor that is read is in memory; the pages of the
file itself are mapped and can be released by the system at any time.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from slm.errors import DataError
from slm.files import check_not_lfs_pointer, read_json

SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"
REFUSED_CODE = re.compile(r"GLOBAL ([\w.]+)")


def find_weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a folder; safetensors are preferred.

    Raises:
        DataError: if there are none, a shard of the index is missing, or a file is a Git LFS pointer.
    """
    for name in (SAFETENSORS, TORCH):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            files = [folder / name]
        elif index.is_file():
            files = [folder / shard for shard in _read_index(index)]
        else:
            continue
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise DataError(
                f"{index}: {len(missing)} of {len(files)} shards are missing, first {missing[0]}; download the "
                "whole checkpoint"
            )
        for file in files:
            check_not_lfs_pointer(file)
        return files
    raise DataError(f"{folder}: no weights; need {SAFETENSORS}, {TORCH} or shards with an index")


def _read_index(index: Path) -> list[str]:
    try:
        return sorted(set(read_json(index)["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise DataError(f"{index}: not a shard index (no `weight_map`)") from None


def read_tensors(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors of weight files.

    Raises:
        DataError: if a file is damaged, or contains anything but floating-point tensors.
    """
    for path in files:
        read = _read_safetensors if path.suffix == ".safetensors" else _read_torch
        for name, tensor in read(path):
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise DataError(f"{path}: {name} is {found}; slm loads floating-point tensors only")
            yield name, tensor


def _read_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  not a mapping
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise _damaged(path, error) from None


def _read_torch(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        # Files from before torch 1.6 are no zip archives and cannot be mapped.
        is_mappable = zipfile.is_zipfile(path)
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable)
    except UnpicklingError as error:
        if found := REFUSED_CODE.search(str(error)):
            raise DataError(
                f"{path}: contains more than tensors: pickled code ({found[1]}), which slm does not run; use the "
                f"weights as {SAFETENSORS}"
            ) from None
        raise _damaged(path, "no pickled tensors") from None
    except Exception as error:
        raise _damaged(path, error) from None
    if not isinstance(saved, dict):
        raise DataError(f"{path}: contains a {type(saved).__name__} instead of named tensors")
    yield from saved.items()


def _damaged(path: Path, reason: object) -> DataError:
    lines = str(reason).splitlines() or ["no reason given"]
    size = path.stat().st_size
    return DataError(
        f"{path}: damaged file of {size:,} bytes ({lines[0][:100]}); download it again"
    )
