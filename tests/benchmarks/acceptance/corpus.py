"""A corpus of random words, prepared without the library `datasets`, which the machine may lack."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from slm.config.hydra import compose_config
from slm.data.corpus.documents import Document
from slm.data.tokens.prepare import prepare

WORDS = 500
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class _FileStream:
    """The stream that `data.source=text_files` opens, read with plain Python."""

    def __init__(self, files: list[Path]):
        self._files = files
        self._read = 0

    def __iter__(self) -> Iterator[Document]:
        for path in self._files[self._read :]:
            self._read += 1
            yield Document("all", path.name, path.read_text(encoding="utf-8"))

    def state(self) -> int:
        return self._read

    def restore(self, state: int) -> None:
        self._read = state


def corpus_overrides(folder: Path, documents: int, words: int) -> list[str]:
    """Write and prepare the corpus; return the overrides of a run on it.

    Prepared tokens are found by the hash of their content, so runs only open them.
    """
    texts, draw = folder / "corpus", random.Random(0)
    texts.mkdir(exist_ok=True)
    lexicon = ["".join(draw.choices(LETTERS, k=draw.randint(2, 9))) for _ in range(WORDS)]
    for number in range(documents):
        text = " ".join(draw.choices(lexicon, k=words))
        (texts / f"{number:04d}.txt").write_text(text + "\n", encoding="utf-8")
    files = sorted(texts.glob("*.txt"))
    overrides = [
        "data=text_files",
        f"data.files=[{texts / '*.txt'}]",
        "data.val_tokens=16384",
        "data.max_epochs=1000000",
        "tracking=disabled",
        f"cache_dir={folder / 'cache'}",
        f"runs_dir={folder / 'runs'}",
    ]
    with patch("slm.data.tokens.prepare.open_parts", lambda _: {"all": lambda: _FileStream(files)}):
        prepare(compose_config(overrides))
    return overrides
