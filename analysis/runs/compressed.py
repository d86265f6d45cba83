"""Decompress the content of a file: gzip, bzip2 and xz, and zip archives that hold one table."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import PurePath

ZIP = ".zip"
DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
}
SUFFIXES = (*DECOMPRESS, ZIP)
MAGIC_NUMBERS = {
    ".gz": re.compile(rb"\x1f\x8b"),
    ".bz2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"),
    ".xz": re.compile(rb"\xfd7zXZ\0"),
    ZIP: re.compile(rb"PK(\x03\x04|\x05\x06)"),
}
EXCEL = "xl/workbook.xml"
MAX_LISTED = 3  # tables of a zip archive
ERRORS = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError)
"""Errors of damaged content, and of encrypted zip archives (RuntimeError)."""


def bare_name(name: str) -> str:
    """Return a file name without the suffix of a compression."""
    path = PurePath(name)
    return path.stem if path.suffix.lower() in SUFFIXES else name


def decompressed(name: str, content: bytes, is_table: Callable[[str], bool]) -> tuple[str, bytes]:
    """Return the name without the suffix of a compression, or the name in a zip archive, and the content.

    A compression is recognized by its magic number too, since a file may have been renamed.

    Args:
        is_table: whether a name in a zip archive is that of a table.

    Raises:
        ValueError: if a zip archive holds no table or several; `ERRORS` and OSError for damaged content.
    """
    suffix = PurePath(name).suffix.lower()
    found = (each for each, magic in MAGIC_NUMBERS.items() if magic.match(content))
    compression = next(found, suffix if suffix in SUFFIXES else "")
    if compression == ZIP:
        return _unzipped(content, is_table)
    if compression:
        content = DECOMPRESS[compression](content)
    return bare_name(name), content


def _unzipped(content: bytes, is_table: Callable[[str], bool]) -> tuple[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        if EXCEL in names:
            raise ValueError("an Excel workbook; save the sheet as .csv")
        tables = [
            name for name in names if is_table(name) and not PurePath(name).name.startswith(".")
        ]  # macOS adds __MACOSX/._NAME
        if len(tables) != 1:
            more = ", ..." if len(tables) > MAX_LISTED else ""
            listed = f" ({', '.join(tables[:MAX_LISTED])}{more})" if tables else ""
            raise ValueError(
                f"the zip archive holds {len(tables)} tables{listed}; extract them, or pack one table per archive"
            )
        return tables[0], archive.read(tables[0])
