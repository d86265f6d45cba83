"""Content of the page: progress, curves, paired differences and details of runs, as JSON."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from analysis.study_actions.watch.machine import machine_load
from analysis.study_actions.watch.pairs import (
    budget_label,
    pair_rows,
    pair_summary,
    pairs_figure,
    pairs_of,
)
from analysis.study_actions.watch.reader import RunLog, read_new
from analysis.study_actions.watch.verdict import VerdictWorker
from slm.charts import Figure, LossCurve, Series, finite_or_none, loss_curves
from slm.formatting import format_duration, round_down, scientific, short_count
from slm.run.display_name import display_name, size_label
from slm.studies.cells import DONE, Cell, colour_order, contrast_of, jobs_of
from slm.studies.status import Progress, progress_of
from slm.studies.throughput import (
    Throughput,
    count_concurrent_jobs,
    load_throughput,
    wall_seconds,
)
from slm.tracking.result import RunResult

READ_SECONDS = 0.4  # of a refresh; the rest is read by the next ones
CURVE_SECONDS = 8.0  # between new versions of the curves
MACHINE_SECONDS = 10.0
MAX_CURVE_POINTS, MAX_POINTS, MIN_CURVE_POINTS = 300, 20_000, 20
TAIL_BYTES = 12_000
UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    ArithmeticError,
)  # of a damaged file
Against = Literal["tokens", "flops"]


@dataclass(frozen=True)
class Document:
    """JSON with a version, so that a browser requests only what changed."""

    body: bytes
    version: str

    @classmethod
    def of(cls, value: Any) -> Document:
        body = json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
        return cls(body, hashlib.sha256(body).hexdigest()[:16])


@dataclass(frozen=True)
class Known:
    """A finished or diverged cell, valid while its files are unchanged."""

    files: tuple[Any, ...]
    progress: Progress
    result: RunResult | None


class Snapshot:
    """The newest content of all documents; `refresh` reads the run directories."""

    def __init__(self, cells: Sequence[Cell]):
        self.cells = cells
        self.config = cells[0].spec.config
        self.by_id = {cell.spec.run_id: cell for cell in cells}
        files = {run_id: cell.run.path / "metrics.jsonl" for run_id, cell in self.by_id.items()}
        self.logs = {run_id: RunLog(file) for run_id, file in files.items()}
        self.deep, self.wide = contrast_of(cells)
        self.families = colour_order(cells)
        self.worker = VerdictWorker(cells)
        self._jobs = [[cell.spec.run_id for cell in job.cells] for job in jobs_of(cells)]
        self._layout = _layout(cells, self.families)
        self._known: dict[str, Known] = {}
        self._throughput: tuple[frozenset[str], Throughput] = frozenset(), load_throughput(cells)
        self._curve_versions: dict[str, int] = {}
        self._curves: dict[str, LossCurve] = {}
        self._curve_documents: dict[str, tuple[int, Document]] = {}
        self.curves_version = 0
        self._lock = threading.Lock()
        self._pairs: tuple[frozenset[str], dict[str, Any]] | None = None
        self.curves_due = self._machine_due = 0.0
        self.refresh_seconds = 0.0, 0.0  # wall and CPU time
        self._machine: list[tuple[str, str]] = []
        self.state = self.analysis = Document.of({})

    def refresh(self) -> bool:
        """Read what changed, and update the documents; return whether more is to be read at once."""
        with self._lock:
            return self._refresh()

    def _refresh(self) -> bool:
        start = time.monotonic(), time.thread_time()
        unread = read_new(self.logs.values(), READ_SECONDS)
        progress = {run_id: self._progress(run_id) for run_id in self.by_id}
        self._update_throughput()
        self._update_analysis(list(progress.values()))
        now = time.monotonic()
        if now >= self._machine_due:
            self._machine, self._machine_due = machine_load(), now + MACHINE_SECONDS
        if now >= self.curves_due or not self._curves:
            self._update_curves()
            self.curves_due = now + CURVE_SECONDS
        total = unread + sum(log.offset for log in self.logs.values())
        self.state = Document.of(
            {
                "summary": self._summary(progress),
                "runs": [self._run_state(one) for one in progress.values()],
                "machine": self._machine,
                "reading": round(1 - unread / total, 2) if unread else None,
                "curves": self.curves_version,
                "analysis": self.analysis.version,
            }
        )
        self.refresh_seconds = time.monotonic() - start[0], time.thread_time() - start[1]
        return unread > 0

    def fail(self, reason: str) -> None:
        """Add to the state why it cannot be refreshed."""
        self.state = Document.of({**json.loads(self.state.body), "error": reason})

    def layout(self) -> dict[str, Any]:
        """Return what does not change: names of the study, its families, rungs and budgets, and all runs."""
        study, colours = self.config.study, Series(tuple(self.families))
        return {
            "study": study.name,
            "question": study.question,
            "folder": str(Path(self.config.runs_dir) / study.name),
            "unit": self.config.budget.unit,
            "families": self.families,
            "swatches": {name: colours.colour(name) for name in self.families},
            **self._layout,
        }

    def _progress(self, run_id: str) -> Progress:
        cell = self.by_id[run_id]
        files = _files(cell)
        known = self._known.get(run_id)
        if known is not None and known.files == files:
            return known.progress
        try:
            progress = progress_of(cell, self._throughput[1])
            finite_or_none(progress.loss)  # a TypeError if result.json has text
            if progress.state in DONE and cell.result is None:
                raise ValueError("result.json")
            if progress.state in DONE:
                self._known[run_id] = Known(files, progress, cell.result)
            else:
                self._known.pop(run_id, None)
        except UNREADABLE as error:
            self._known.pop(run_id, None)
            progress = Progress(cell, "unreadable", 0, None, None, None, f"{type(error).__name__}")
        return progress

    def _update_throughput(self) -> None:
        """Load the measured throughput again whenever a cell has finished."""
        finished = frozenset(self._known)
        if finished != self._throughput[0]:
            self._throughput = finished, load_throughput(self.cells)

    def _update_analysis(self, progress: Sequence[Progress]) -> None:
        results = [
            known.result
            for known in self._known.values()
            if known.result is not None and known.progress.state == "finished"
        ]
        is_complete = all(one.state in DONE for one in progress)
        self.worker.update(results, is_complete=is_complete)
        finished = frozenset(result.run_id for result in results)
        if self._pairs is None or self._pairs[0] != finished:
            self._pairs = finished, self._pair_content(results)
        running = {"is_running": self.worker.is_running}
        self.analysis = Document.of({**self._pairs[1], **running, **self.worker.content})

    def _pair_content(self, results: Sequence[RunResult]) -> dict[str, Any]:
        unit = self.config.budget.unit
        pairs = pairs_of(results, self.by_id, self.deep, self.wide)
        figure = pairs_figure(pairs, self.deep, self.wide, unit)
        return {
            "deep": self.deep,
            "wide": self.wide,
            "pairs": None if figure is None else {**_plain(figure), "rows": pair_rows(pairs)},
            "summary": pair_summary(pairs, unit),
        }

    def _summary(self, progress: dict[str, Progress]) -> dict[str, Any]:
        total = sum(one.cell.spec.flops for one in progress.values())
        done = sum(one.done_flops for one in progress.values())
        seconds = self._remaining_seconds(progress)
        return {
            "counts": dict(Counter(one.state for one in progress.values())),
            "cells": len(progress),
            "flops_share": round_down(done / total, 4),
            "remaining": None if seconds is None else format_duration(seconds),
        }

    def _remaining_seconds(self, progress: dict[str, Progress]) -> float | None:
        """Estimate the wall time until all cells are done; None if the throughput is unknown.

        As many jobs as are running now, or as this machine can run, are assumed to run at a time. The steps of a
        trunk count once.
        """
        seconds, running = [], 0
        for job in self._jobs:
            shared, remaining = 0, 0.0
            for run_id in job:
                cell, one = self.by_id[run_id], progress[run_id]
                running += one.state == "running"
                if one.state not in DONE and (steps := cell.spec.steps - one.step) > 0:
                    if one.remaining_seconds is None:
                        return None
                    new = cell.spec.steps - max(one.step, min(shared, cell.spec.trunk_steps))
                    remaining += one.remaining_seconds * new / steps
                shared = max(shared, cell.spec.trunk_steps)
            seconds.append(remaining)
        return wall_seconds(seconds, running or count_concurrent_jobs(self.config))

    def _run_state(self, one: Progress) -> dict[str, Any]:
        speed = one.tokens_per_second
        return {
            "state": one.state,
            "done": round_down(min(one.fraction, 1.0), 3),
            "loss": None if (loss := finite_or_none(one.loss)) is None else round(loss, 4),
            "speed": None if speed is None else f"{short_count(speed)} tokens/s",
            "note": one.note,
        }

    def _update_curves(self) -> None:
        """Average the new points of the curves, at most `MAX_POINTS` of all runs together."""
        count = min(MAX_CURVE_POINTS, max(MIN_CURVE_POINTS, MAX_POINTS // len(self.logs)))
        for run_id, log in self.logs.items():
            if log.version != self._curve_versions.get(run_id, 0):
                self._curve_versions[run_id] = log.version
                curve = self._curve(run_id)
                points = curve.points(count)
                tokens, losses = zip(*points, strict=True) if points else ((), ())
                self._curves[run_id] = replace(curve, tokens=tokens, losses=losses)
                self.curves_version += 1

    def curves(self, against: Against) -> Document:
        """Return the chart of the training losses; null without any."""
        version, document = self._curve_documents.get(against, (0, Document.of(None)))
        if version != self.curves_version:
            version = self.curves_version
            figure = loss_curves(list(self._curves.values()), self.families, against=against)
            document = Document.of(None if figure is None else _plain(figure))
            self._curve_documents[against] = version, document
        return document

    def _curve(self, run_id: str) -> LossCurve:
        cell = self.by_id[run_id]
        name, flops = display_name(cell.spec), cell.spec.flops_per_token
        return self.logs[run_id].curve(run_id, name, cell.family, flops)

    def details(self, run_id: str) -> dict[str, Any]:
        """Return facts, last values, curve, traceback and last log lines of a run."""
        cell, log = self.by_id[run_id], self.logs[run_id]
        spec = cell.spec
        with self._lock:
            progress, latest = self._progress(run_id), log.shown()
            figure = loss_curves([self._curve(run_id)], self.families)
        facts = {
            "family": cell.family,
            "shape": spec.shape.label,
            "size": size_label(spec),
            "tokens": f"{spec.tokens:,} ({spec.tokens_per_param:g} per parameter)",
            "steps": f"{spec.steps:,} of {spec.batch_tokens:,} tokens",
            "FLOPs": scientific(spec.flops),
            "seed": str(spec.config.seed),
            "peak learning rate": f"{spec.config.optimizer.lr:g}",
            "set by the study": " ".join((*cell.varied, *cell.decided)) or "nothing else",
            "run id": run_id,
            "folder": "only in study.results"
            if cell.recorded and not cell.run.path.exists()
            else str(cell.run.path),
        }
        return {
            "name": display_name(spec),
            "state": progress.state,
            "note": progress.note,
            "facts": facts,
            "latest": latest,
            "curve": None if figure is None else _plain(figure),
            "traceback": _tail(cell.run.path / "traceback.txt")
            if progress.state == "failed"
            else "",
            "log": _tail(cell.run.path / "log.txt"),
        }


def _layout(cells: Sequence[Cell], families: Sequence[str]) -> dict[str, Any]:
    """Return rows, columns and budgets of the grid of cells, and the place of each run in it."""
    ordered = sorted(
        cells, key=lambda cell: (cell.spec.reference_flops_per_token, cell.spec.tokens)
    )
    columns = list(dict.fromkeys(size_label(cell.spec) for cell in ordered))
    rows = sorted({_row(cell) for cell in cells}, key=lambda row: (families.index(row[0]), row[1]))
    runs = [
        {
            "id": cell.spec.run_id,
            "name": display_name(cell.spec),
            "family": cell.family,
            "row": rows.index(_row(cell)),
            "column": columns.index(size_label(cell.spec)),
            "budget": budget_label(cell),
            "seed": cell.spec.config.seed,
        }
        for cell in cells
    ]
    titles = [{"family": family, "label": ", ".join(varied)} for family, varied in rows]
    budgets = sorted({budget_label(cell) for cell in cells}, key=float)
    return {"rows": titles, "columns": columns, "budgets": budgets, "runs": runs}


def _row(cell: Cell) -> tuple[str, tuple[str, ...]]:
    return cell.family, cell.varied


def _plain(figure: Figure) -> dict[str, Any]:
    return {"caption": figure.caption, "spec": figure.spec()}


def _files(cell: Cell) -> tuple[Any, ...]:
    """Return size and time of the files that decide the state of a cell."""
    if cell.recorded is not None:
        return ()
    found = []
    for name in ("status.json", "result.json"):
        try:
            status = os.stat(cell.run.path / name)  # noqa: PTH116 - a third of the time of Path.stat
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
        except OSError:
            found.append((0, 0, 0))
    return tuple(found)


def _tail(path: Path) -> str:
    """Return the last complete lines of a text file; empty if there is none."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - TAIL_BYTES))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return text if size <= TAIL_BYTES else text.partition("\n")[2]
