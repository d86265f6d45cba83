"""What was prepared, in numbers: as data and as text."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from slm.data.tokens.shards import PreparedData


def described_data(data: PreparedData) -> dict[str, Any]:
    """Counts of both splits; plain values, ready for JSON. `tokens` hold a separator a document."""
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
    kept = ("fingerprint", "vocab_size", "dtype", "left_out", "overlap", "wall_seconds")
    return {"folder": str(data.folder), **{key: manifest[key] for key in kept}, "splits": splits}


def print_data(data: PreparedData) -> None:
    described = described_data(data)
    Console().print(str(data.folder), soft_wrap=True)
    table = Table()
    table.add_column("split")
    for heading in ("documents", "bytes of text", "tokens", "bytes/token"):
        table.add_column(heading, justify="right")
    for name, split in described["splits"].items():
        table.add_row(
            name,
            f"{split['documents']:,}",
            f"{split['bytes']:,}",
            f"{split['tokens']:,}",
            f"{split['bytes_per_token']:.3f}",
        )
    console = Console()
    console.print(table)
    separators = sum(split["documents"] for split in described["splits"].values())
    held_out = described["splits"]["val"]["bytes"]
    share = held_out / sum(split["bytes"] for split in described["splits"].values())
    console.print(f"tokens: {separators:,} of them separators; held out: {share:.1%} of the bytes")
    left_out = [f"{number:,} {reason}" for reason, number in described["left_out"].items()]
    console.print(f"left out: {', '.join(left_out) or 'nothing'}")
    overlap = described["overlap"]
    if overlap["share"] is not None:
        console.print(
            f"{overlap['share']:.2%} of validation's {overlap['ngrams']:,} {overlap['words']}-grams of "
            "words are in the training text too"
        )
    console.print(
        f"vocabulary {described['vocab_size']:,}, {described['dtype'].lstrip('<')}, "
        f"fingerprint {described['fingerprint']}, made in {described['wall_seconds']:,.1f} s"
    )
