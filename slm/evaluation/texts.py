"""Reading of evaluation texts from files that are named on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from glob import glob
from pathlib import Path

from slm.config.schema import DataConfig
from slm.config.schema.data import Source
from slm.data.corpus.sources import open_parts
from slm.errors import DataError

READER_OF_SUFFIX: dict[str, Source] = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".parquet": "parquet",
}


def read_texts(pattern: str, *, document: str, column: str) -> Iterator[tuple[str, str]]:
    """Yield (name, text) for each document of the files that a glob matches.

    Files are read as JSONL or Parquet by their suffix, all others as plain text.

    Raises:
        DataError: if no file matches, or a file cannot be read.
    """
    if Path(pattern).is_dir():
        raise DataError(
            f"text={pattern}: a folder; give a pattern of files, such as {pattern}/*.txt"
        )
    if not glob(pattern, recursive=True):  # noqa: PTH207  Path.glob takes no absolute pattern
        raise DataError(f"text={pattern}: matches no file; check the path")
    suffix = next((s for s in READER_OF_SUFFIX if pattern.endswith(s)), "")
    config = DataConfig(
        source=READER_OF_SUFFIX.get(suffix, "text_files"),
        files=(pattern,),
        document=document,  # type: ignore[arg-type]
        column=column,
        skip_bad_rows=True,
    )
    for each in open_parts(config)["all"]():
        if each.text:
            yield each.id.removeprefix("all/"), each.text
