"""Incremental reading of metrics.jsonl while it is appended to, rewritten, replaced and deleted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from analysis.study_actions.watch import reader
from analysis.study_actions.watch.reader import RunLog, read_new
from slm.tracking import run_dir


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    return RunLog(tmp_path / "run" / "metrics.jsonl")


def row(step: int, loss: float, **others: float) -> str:
    content = {run_dir.STEP: step, run_dir.TOKENS: 100 * step, run_dir.TRAIN_LOSS: loss, **others}
    return json.dumps(content) + "\n"


def write(log: RunLog, text: str, mode: str = "a") -> None:
    log.path.parent.mkdir(exist_ok=True)
    with log.path.open(mode) as stream:
        stream.write(text)


def read(log: RunLog) -> list[tuple[float, float]]:
    assert read_new([log], seconds=60) == 0
    return list(zip(log.tokens, log.losses, strict=True))


def test_only_complete_new_lines_are_read(log: RunLog) -> None:
    assert read(log) == []  # the directory does not exist yet
    line = row(3, 2.0)
    write(log, row(1, 4.0) + row(2, 3.0) + line[:20])
    assert read(log) == [(100, 4.0), (200, 3.0)]
    write(log, line[20:])
    assert read(log) == [(100, 4.0), (200, 3.0), (300, 2.0)]
    version = log.version
    assert not log.look() and log.version == version


def test_a_resumed_run_repeats_steps_and_the_last_value_counts(log: RunLog) -> None:
    write(log, row(1, 4.0) + row(2, 3.0) + row(3, 2.5))
    read(log)
    write(log, row(2, 3.5) + row(3, 2.75))
    assert read(log) == [(100, 4.0), (200, 3.5), (300, 2.75)]


@pytest.mark.parametrize("lines", [1, 5], ids=["shorter", "longer"])
def test_a_replaced_file_is_read_from_its_start(log: RunLog, lines: int) -> None:
    write(log, row(1, 4.0) + row(2, 3.0))
    read(log)
    write(log, "".join(row(step, 8.0) for step in range(1, lines + 1)), mode="w")
    assert read(log) == [(100 * step, 8.0) for step in range(1, lines + 1)]


def test_a_rewritten_file_with_the_same_start_loses_no_row(log: RunLog) -> None:
    """`RunDirectory.open_metrics` removes half a line by replacing the file."""
    write(log, row(1, 4.0) + row(2, 3.0) + '{"progress')
    read(log)
    log.path.with_name("new").write_text(row(1, 4.0) + row(2, 3.0) + row(3, 2.0))
    log.path.with_name("new").rename(log.path)
    assert [tokens for tokens, _ in read(log)] == [100, 200, 300]


def test_a_deleted_run_is_empty_and_may_come_back(log: RunLog) -> None:
    write(log, row(1, 4.0, **{run_dir.VAL_LOSS: 4.5}))
    read(log)
    assert log.latest[run_dir.VAL_LOSS] == 4.5
    log.path.unlink()
    assert read(log) == [] and not log.latest
    write(log, row(1, 6.0))
    assert read(log) == [(100, 6.0)]


def test_damaged_lines_are_skipped(log: RunLog) -> None:
    damaged = [
        "{",
        "[]",
        "null",
        '{"train/loss": "x", "progress/tokens": 1}',
        '{"train/loss": 1}',
        '{"train/loss": 1, "progress/tokens": ' + 400 * "9" + "}",
        "\0\0",
    ]
    write(log, row(1, 4.0) + "\n".join(damaged) + "\n" + row(2, float("nan")) + row(3, 2.0))
    tokens, losses = zip(*read(log), strict=True)
    assert (tokens, losses) == ((100, 300), (4.0, 2.0))


def test_a_large_file_is_read_in_parts(log: RunLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "CHUNK_BYTES", 256)
    write(log, "".join(row(step, 4.0) for step in range(1, 101)))
    assert log.look() and log.read()
    assert 0 < len(log.tokens) < 10 and log.unread_bytes > 0
    assert len(read(log)) == 100


def test_a_chunk_without_end_of_line_is_passed_over(
    log: RunLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "CHUNK_BYTES", 256)
    write(log, "x" * 1000 + "\n" + row(1, 4.0))
    assert read(log) == [(100, 4.0)]


def test_a_long_run_keeps_a_bounded_number_of_points(
    log: RunLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "MAX_POINTS", 64)
    monkeypatch.setattr(reader, "CHUNK_BYTES", 1024)
    write(log, "".join(row(step, 4.0) for step in range(1, 1001)))
    points = read(log)
    assert 20 < len(points) < 64 + 1024 // 60 and points[-1][0] == pytest.approx(100_000, rel=0.05)
    assert set(_losses(points)) == {4.0}


def _losses(points: Sequence[tuple[float, float]]) -> list[float]:
    return [loss for _, loss in points]
