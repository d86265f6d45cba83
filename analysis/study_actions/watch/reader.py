"""Read the metrics of many runs while they are written: only new bytes of metrics.jsonl, and never a write.

A file may end in half a line, become shorter or be replaced (resume, `rerun=true`), vanish, or not exist yet.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import from_json  # three times as fast as json

from slm.charts import LossCurve
from slm.tracking import run_dir
from slm.tracking.run_dir import is_finite_number

FLOAT32_ERROR = 1.2e-7  # relative
CHUNK_BYTES = 1 << 18
CHECKED_BYTES = 64  # before the offset: they differ if the file was replaced
MAX_POINTS = 8192  # kept per run; more are averaged to half as many
# Key -> name and format of the newest value
SHOWN = {
    run_dir.STEP: ("step", ",.0f"),
    run_dir.TOKENS: ("training tokens", ",.0f"),
    run_dir.TRAIN_LOSS: ("training loss", ".4f"),
    run_dir.VAL_LOSS: ("validation loss", ".4f"),
    run_dir.LR: ("learning rate", ".3g"),
    run_dir.GRAD_NORM: ("gradient norm", ".3g"),
    run_dir.TOKENS_PER_SECOND: ("tokens/s", ",.0f"),
    run_dir.MFU: ("MFU", ".1%"),
}


@dataclass
class RunLog:
    """Training losses of a run after `tokens` tokens each, and the newest value of each key."""

    path: Path
    """metrics.jsonl of the run."""
    tokens: array[float] = field(default_factory=lambda: array("f"))
    losses: array[float] = field(default_factory=lambda: array("f"))
    latest: dict[str, Any] = field(default_factory=dict)
    version: int = 0
    """Increases with every change."""
    offset: int = 0
    _checked: bytes = b""
    _seen: tuple[int, int] | None = None  # size and time of modification
    _has_news: bool = False

    @property
    def unread_bytes(self) -> int:
        return self._seen[0] - self.offset if self._has_news and self._seen else 0

    def look(self) -> bool:
        """Return whether there are lines to read."""
        try:
            status = self.path.stat()
        except OSError:  # deleted, set aside, or not there yet
            if self._seen is not None:
                self._reset()
            return False
        seen = status.st_size, status.st_mtime_ns
        self._has_news |= seen != self._seen
        self._seen = seen
        return self._has_news

    def read(self) -> bool:
        """Read the next complete lines, at most `CHUNK_BYTES`; return whether there may be more."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.offset - len(self._checked))
                if stream.read(len(self._checked)) != self._checked:
                    self._reset()
                    stream.seek(0)
                chunk = stream.read(CHUNK_BYTES)
        except OSError:
            self._reset()
            return False
        self._has_news = len(chunk) == CHUNK_BYTES
        # A line is read when it is complete; a chunk without any end of a line is damaged.
        lines = chunk if self._has_news and b"\n" not in chunk else chunk[: chunk.rfind(b"\n") + 1]
        if lines:
            self.offset += len(lines)
            self._checked = (self._checked + lines)[-CHECKED_BYTES:]
            self._add(lines)
            self.version += 1
        return self._has_news

    def _reset(self) -> None:
        del self.tokens[:], self.losses[:]
        self.latest.clear()
        self.version += 1
        self.offset, self._checked, self._seen, self._has_news = 0, b"", None, False

    def _add(self, lines: bytes) -> None:
        for row in _rows(lines.splitlines()):
            self.latest.update(row)
            tokens, loss = row.get(run_dir.TOKENS), row.get(run_dir.TRAIN_LOSS)
            if is_finite_number(tokens) and is_finite_number(loss):
                self._add_loss(tokens, loss)
        if len(self.tokens) > MAX_POINTS:
            points = self.curve("", "", "", 1.0).points(MAX_POINTS // 2)
            self.tokens = array("f", [tokens for tokens, _ in points])
            self.losses = array("f", [loss for _, loss in points])

    def _add_loss(self, tokens: float, loss: float) -> None:
        """Append a loss; a resumed run repeats the steps after its checkpoint, and the last value counts."""
        while self.tokens and self.tokens[-1] >= tokens * (1 - FLOAT32_ERROR):
            self.tokens.pop()
            self.losses.pop()
        self.tokens.append(tokens)
        self.losses.append(loss)

    def shown(self) -> dict[str, str]:
        """Return the newest values by name."""
        known = ((name, form, self.latest.get(key)) for key, (name, form) in SHOWN.items())
        return {name: f"{value:{form}}" for name, form, value in known if is_finite_number(value)}

    def curve(self, run_id: str, name: str, family: str, flops_per_token: float) -> LossCurve:
        return LossCurve(run_id, name, family, flops_per_token, self.tokens, self.losses)


def _rows(lines: Sequence[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the rows of complete lines without the damaged ones."""
    try:
        rows = from_json(b"[" + b",".join(lines) + b"]")
    except ValueError:
        rows = []
        for line in lines:
            with suppress(ValueError):
                rows.append(from_json(line))
    for row in rows:
        if isinstance(row, dict):
            yield row


def read_new(logs: Iterable[RunLog], seconds: float) -> int:
    """Read new lines for at most about `seconds`; return how many bytes remain for the next call."""
    end = time.monotonic() + seconds
    waiting = [log for log in logs if log.look()]
    for log in waiting:
        while time.monotonic() < end and log.read():
            pass
    return sum(log.unread_bytes for log in waiting)
