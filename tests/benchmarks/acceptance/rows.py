"""Rows of the acceptance table, written one by one, so that a stage that is stopped keeps what it measured."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

MET, MISSED, MEASURED, SKIPPED, FAILED = "met", "missed", "measured", "skipped", "failed"
ROOT = Path(__file__).parents[
    3
]  # of the checkout; tests.conftest needs pytest, which may be missing
BAD = {MISSED, FAILED}


@dataclass(frozen=True)
class Options:
    """How the stages are run."""

    device: str
    """`cuda` or `cpu`."""
    quick: bool
    """Toy sizes: checks the command, not the machine."""
    folder: Path
    """Scratch folder inside the checkout."""

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def accelerator(self) -> str:
        return "gpu" if self.on_gpu else "cpu"


@dataclass(frozen=True)
class Row:
    check: str
    status: str
    """met or missed (it has a bound), measured (it has none), skipped, or failed (an error)."""
    value: float | str | None = None
    unit: str = ""
    bound: str = ""
    note: str = ""

    def cells(self) -> list[str]:
        shown = "" if self.value is None else f"{format_value(self.value)} {self.unit}".strip()
        return [self.check, shown, self.bound, self.status, self.note]

    def line(self) -> str:
        check, value, bound, status, note = self.cells()
        measured = f": {value}" if value else ""
        target = f" ({bound})" if bound else ""
        return f"  {status:8} {check}{measured}{target}{f'; {note}' if note else ''}"


def format_value(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


class Rows:
    """Appends rows to a file of JSON lines and prints each."""

    def __init__(self, path: Path):
        self._path = path

    def measured(self, check: str, value: float | str, unit: str = "", note: str = "") -> None:
        self._add(Row(check, MEASURED, value, unit, "", note))

    def check(
        self,
        check: str,
        value: float,
        unit: str = "",
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        note: str = "",
    ) -> None:
        """Add a value with its bounds; NaN misses every bound."""
        bounds, is_met = [], True
        if at_least is not None:
            bounds.append(f">= {at_least:g}")
            is_met = value >= at_least
        if at_most is not None:
            bounds.append(f"<= {at_most:g}")
            is_met = is_met and value <= at_most
        status = MET if is_met else MISSED
        shown = float(value) if math.isfinite(value) else str(value)  # JSON has no infinity
        self._add(Row(check, status, shown, unit, ", ".join(bounds), note))

    def holds(self, check: str, condition: bool, note: str = "") -> None:
        self._add(Row(check, MET if condition else MISSED, "yes" if condition else "no", note=note))

    def skipped(self, check: str, reason: str) -> None:
        self._add(Row(check, SKIPPED, note=reason))

    def failed(self, check: str, error: str) -> None:
        self._add(Row(check, FAILED, note=error))

    def _add(self, row: Row) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        print(row.line(), flush=True)


def read_rows(path: Path) -> list[Row]:
    """Read the rows; the last line may be incomplete where the writer was killed."""
    if not path.exists():
        return []
    complete, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [Row(**json.loads(line)) for line in complete.splitlines()]
