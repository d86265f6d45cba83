"""Reading of evaluation texts: files that are named on the command line, and WikiText-2 from the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from glob import glob
from pathlib import Path
from typing import Any

from slm.config.schema import DataConfig
from slm.config.schema.data import Source
from slm.data.corpus.sources import open_parts
from slm.errors import DataError

READER_OF_SUFFIX: dict[str, Source] = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".parquet": "parquet",
}
DOCUMENTS = ("file", "paragraph", "line", "article", "joined")
WIKITEXT2 = "wikitext2"  # value of text=
# The test split of WikiText-2 (Merity et al. 2016), raw; `data=wikitext2` trains on the same revision.
WIKITEXT2_CONFIG = DataConfig(
    source="hub",
    repo="Salesforce/wikitext",
    subset="wikitext-2-raw-v1",
    revision="b08601e04326c79dfdd32d625aee71d232d685c3",
    train_split="test",
)
BLANK_LINES = re.compile(r"\n\s*\n")
ARTICLE_TITLE = r"^ = [^=\n]+ = \n?$"  # of WikiText; a section has more equals signs


def read_texts(pattern: str, *, document: str, column: str) -> list[tuple[str, str]]:
    """Return (name, text) for each document of the files that a glob matches, or of WikiText-2.

    Files are read as JSONL or Parquet by their suffix, all others as plain text.

    Args:
        pattern: path or glob, or `wikitext2` for the raw test split from the Hugging Face hub.
        document: unit of .txt files that is one document: file, paragraph (between blank lines) or line. With article, a line that is a
            title of WikiText starts a document, in all kinds of files. With joined, the rows of all files (lines of
            .txt files) are one document, joined by blank lines; a row of spaces counts as empty, as in the hub's
            WikiText.
        column: column of .jsonl and .parquet files with the text.

    Raises:
        DataError: if no file matches, a file cannot be read, or there is no text.
    """
    documents = list(_documents(pattern, document, column))
    if document == "joined":
        documents = [(Path(pattern).name, join_rows(text for _, text in documents))]
    documents = [(name, text) for name, text in documents if text.strip()]
    if not documents:
        raise DataError(f"text={pattern}: the files contain no text")
    return documents


def join_rows(rows: Iterable[str]) -> str:
    r"""Join rows as the perplexity guide of transformers does: `"\n\n".join(dataset["text"])`."""
    return "\n\n".join(row if row.strip() else "" for row in rows)


def _documents(pattern: str, document: str, column: str) -> Iterator[tuple[str, str]]:
    changes: dict[str, Any] = {"skip_bad_rows": True}
    if document == "article":
        changes["new_document"] = ARTICLE_TITLE
    if pattern == WIKITEXT2:
        yield from _hub_rows(changes)
        return
    if Path(pattern).is_dir():
        raise DataError(
            f"text={pattern}: a folder; give a pattern of files, such as {pattern}/*.txt"
        )
    if not glob(pattern, recursive=True):  # noqa: PTH207  Path.glob takes no absolute pattern
        raise DataError(f"text={pattern}: matches no file; check the path")
    suffix = next((s for s in READER_OF_SUFFIX if pattern.endswith(s)), "")
    source = READER_OF_SUFFIX.get(suffix, "text_files")
    is_split_here = source == "text_files" and document == "paragraph"
    unit = {"article": "line", "joined": "line", "paragraph": "file"}.get(document, document)
    config = DataConfig(
        source=source,
        files=(pattern,),
        document=unit,  # type: ignore[arg-type]
        column=column,
        **changes,
    )
    found = _stream(config)
    yield from _paragraphs(found) if is_split_here else found


def _paragraphs(files: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Split texts at lines that are empty or blank: WikiText has a space in them."""
    for name, text in files:
        found = (part for part in BLANK_LINES.split(text) if part.strip())
        for number, part in enumerate(found):
            yield f"{name}:{number}", part


def _hub_rows(changes: dict[str, Any]) -> Iterator[tuple[str, str]]:
    try:
        yield from _stream(replace(WIKITEXT2_CONFIG, **changes))
    except DataError as error:
        raise DataError(
            f"text={WIKITEXT2}: WikiText-2 cannot be read from the Hugging Face hub; use a copy of the file with "
            f"text=wiki.test.raw ({str(error).partition(' (')[0]})"
        ) from None


def _stream(config: DataConfig) -> Iterator[tuple[str, str]]:
    for each in open_parts(config)["all"]():
        if each.text is not None:
            yield each.id.removeprefix("all/"), each.text
