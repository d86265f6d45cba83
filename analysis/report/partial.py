"""Describe an incomplete study in its report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Partial:
    """Counts of the cells of a study that is not complete, and what it lacks.

    Attributes:
        finished: number of finished cells, which are in the report.
        cells: number of all cells.
        is_interim: whether a missing cell can still finish; if not, all missing ones diverged.
        lines: sentences on the compared pairs, the missing cells, and the cells that an estimate needs.
    """

    finished: int
    cells: int
    is_interim: bool
    lines: tuple[str, ...]

    @property
    def prefix(self) -> str:
        """Return the start of the headline of an interim result; empty if no result can be added."""
        counts = f"{self.finished} of {self.cells} cells"
        return f"Interim result, {counts}: " if self.is_interim else ""
