"""Summary of prepared data, as a dictionary and as a printed table."""

from __future__ import annotations

from typing import Any

import numpy as np

from slm.console import Column, FittedTable, console, print_lines
from slm.data.tokens.shards import PreparedData


def summarize_data(data: PreparedData) -> dict[str, Any]:
    """Return the counts of both splits as plain values for JSON.

    `tokens` include the end-of-text token of each document, `text_tokens` do not.
    """
    manifest = data.manifest
    splits = {
        name: {
            **{key: split[key] for key in ("documents", "tokens", "bytes")},
            "text_tokens": split["tokens"] - split["documents"],
            "bytes_per_token": split["bytes"] / max(1, split["tokens"] - split["documents"]),
            "shards": len(split["shards"]),
        }
        for name, split in manifest["splits"].items()
    }
    copied = ("fingerprint", "vocab_size", "dtype", "left_out", "overlap", "wall_seconds")
    normalized = manifest.get("normalized_documents", 0)
    return {
        "folder": str(data.folder),
        **{key: manifest[key] for key in copied},
        "normalized_documents": normalized,
        "splits": splits,
    }


def print_data_summary(data: PreparedData) -> None:
    """Print the folder, a table of both splits, and a few totals."""
    summary = summarize_data(data)
    splits = summary["splits"].values()
    columns = [
        Column("split", list(summary["splits"]), is_left=True),
        Column("documents", [f"{split['documents']:,}" for split in splits], rank=2),
        Column("text bytes", [f"{split['bytes']:,}" for split in splits], rank=1),
        Column("tokens", [f"{split['tokens']:,}" for split in splits]),
        Column("bytes/token", [f"{split['bytes_per_token']:.3f}" for split in splits]),
    ]
    out = console()
    out.print(str(data.folder), soft_wrap=True)
    out.print(FittedTable(columns))
    print_lines(out, _format_totals(summary))


def _format_totals(summary: dict[str, Any]) -> list[str]:
    splits, overlap = summary["splits"].values(), summary["overlap"]
    documents = sum(split["documents"] for split in splits)
    val_share = summary["splits"]["val"]["bytes"] / sum(split["bytes"] for split in splits)
    left_out = [f"{reason} {number:,}" for reason, number in summary["left_out"].items()]
    lines = [
        f"end-of-text tokens: {documents:,} (one per document; counted in tokens, not in bytes/token)",
        f"validation share: {val_share:.1%} of the text bytes",
        f"documents left out: {', '.join(left_out) or 'none'}",
    ]
    if summary["normalized_documents"]:
        lines.append(
            f"documents in another Unicode form: {summary['normalized_documents']:,}, brought into that of the tokenizer; "
            "their bytes are counted there"
        )
    if overlap["share"] is not None:
        lines.append(
            f"overlap: {overlap['share']:.2%} of the {overlap['ngrams']:,} word {overlap['words']}-grams "
            "in validation also occur in training"
        )
    return [
        *lines,
        f"vocabulary size: {summary['vocab_size']:,} (dtype {np.dtype(summary['dtype']).name})",
        f"fingerprint: {summary['fingerprint']}",
        f"preparation time: {summary['wall_seconds']:,.1f} s",
    ]
