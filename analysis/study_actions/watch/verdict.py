"""Learning-rate audit and comparison of the finished cells, computed in a process of its own.

It imports pandas and scipy and may take minutes: so the server stays small, and answers at any time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from slm.studies.cells import Cell, contrast_of
from slm.tracking.result import RunResult

NICENESS = 10
MAX_SHARE = 0.2  # of one core that repeated comparisons take while cells finish


@dataclass(frozen=True)
class Request:
    """What to analyze; a study without families to compare has a `contrast` of None."""

    results: tuple[RunResult, ...]
    contrast: tuple[str, str] | None
    audit: str | None
    recipe_id: str
    question: str


class VerdictWorker:
    """Computes the newest content in the background, anew when a further cell is finished."""

    def __init__(self, cells: Sequence[Cell]):
        config = cells[0].spec.config
        deep, wide = contrast_of(cells)
        compares = config.study.analysis == "families" and deep != wide
        self._contrast = (deep, wide) if compares else None
        self._audit = config.study.lr_audit
        self._question = config.study.question
        self._cells = cells
        self._requested: frozenset[str] | None = None
        self._process: Any = None
        self._answers: Connection | None = None
        self._started = self._next = 0.0
        self.content: dict[str, Any] = {}
        """Lines and charts of the last analysis; empty before the first."""

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def update(self, results: Sequence[RunResult], *, is_complete: bool) -> None:
        """Take the content of a finished process, and start the next one if there is anything new."""
        if self._process is not None and self._answers is not None:
            if self._answers.poll():
                self._take()
            elif not self._process.is_alive():
                self._finish({"error": "the analysis ended without a result"})
        finished = frozenset(result.run_id for result in results)
        is_due = is_complete or time.monotonic() >= self._next
        if self._process is None and finished != self._requested and is_due:
            self._start(tuple(results))
            self._requested = finished

    def _start(self, results: tuple[RunResult, ...]) -> None:
        families = {result.family for result in results}
        can_compare = self._contrast is not None and families.issuperset(self._contrast)
        if not can_compare and (self._audit is None or self._requested is not None):
            return
        contrast = self._contrast if can_compare else None
        spec = self._cells[0].spec
        request = Request(results, contrast, self._audit, spec.recipe_id, self._question)
        context = multiprocessing.get_context("spawn")
        self._answers, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(request, sender), daemon=True)
        self._process.start()
        sender.close()
        self._started = time.monotonic()

    def _take(self) -> None:
        assert self._answers is not None
        try:
            self._finish(self._answers.recv())
        except EOFError:
            self._finish({"error": "the analysis ended without a result"})

    def _finish(self, content: dict[str, Any]) -> None:
        self.content = content
        now = time.monotonic()
        self._next = now + min((now - self._started) / MAX_SHARE, 3600.0)
        assert self._process is not None
        self._process.join()
        self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.join()


def _work(request: Request, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends this process
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    os.nice(NICENESS)
    try:
        sender.send(analyze(request))
    except Exception as error:  # shown on the page, whatever it is
        sender.send({"error": f"{type(error).__name__}: {error}"})


def _exit_with_parent() -> None:
    """Exit when the server has ended, also if it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def analyze(request: Request) -> dict[str, Any]:
    """Return the lines of the audit, and text and charts of the comparison, as plain values."""
    from pathlib import Path

    from analysis.learning_rate.audit import parse_audit
    from analysis.learning_rate.gate import read_lr_audit_of_recipe

    content: dict[str, Any] = {}
    audit = None
    if request.audit is not None:
        path = Path(request.audit)
        audit = parse_audit(read_lr_audit_of_recipe(path, request.recipe_id)["families"])
        assert audit is not None
        content["audit"] = {"title": audit.title(), "lines": list(audit.details())}
    if request.contrast is not None:
        content["comparison"] = _compare(request, request.contrast, audit)
    return content


def _compare(request: Request, contrast: tuple[str, str], audit: Any) -> dict[str, Any]:
    from analysis.charts import exponent_difference, level, loss_against_flops
    from analysis.report import text
    from analysis.report.html import NEGATIVE
    from analysis.report.study_report import analyze_study
    from analysis.runs.load import runs_from_results

    deep, wide = contrast
    report = analyze_study(
        runs_from_results(request.results),
        deep=deep,
        wide=wide,
        audit=audit,
        question=request.question,
        bootstrap=0,
    )
    figures = [loss_against_flops(report), exponent_difference(report)]
    if report.comparison.block.level is not None:  # else it shows only the pairs
        figures.insert(1, level(report))

    def printed(line: str) -> str:
        return NEGATIVE.sub("\N{MINUS SIGN}", line)

    return {
        "word": report.comparison.verdict.word,
        "headline": text.headline(report),
        "numbers": [(printed(value), printed(label)) for value, label in text.key_numbers(report)],
        "lines": [printed(line) for line in text.findings(report)],
        "conditions": [printed(line) for line in report.comparison.verdict.conditions],
        "cells": len(request.results),
        "figures": [
            {"name": f.name, "title": f.title, "caption": f.caption, "spec": f.spec()}
            for f in figures
            if f is not None
        ],
    }
