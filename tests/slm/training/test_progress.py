"""Progress of a run on a terminal and in a log."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.text import Text

from slm.logs import StderrHandler
from slm.run.spec import RunSpec
from slm.training import progress
from slm.training.progress import shown_progress
from slm.training.step import StepOutput

Spec = Callable[..., RunSpec]
OUTPUT = StepOutput(torch.tensor(3.2144), torch.tensor(1.0), 0.004)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that a test sets: `seconds` since the start."""
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.seconds))
    return clock


def show_on(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> io.StringIO:
    """Replace the terminal of stderr by one with these settings; return what it shows."""
    shown = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=shown, **settings))
    return shown


def lines_of(shown: io.StringIO) -> Iterator[str]:
    """Yield the lines that a bar has drawn, one over the other."""
    for line in shown.getvalue().replace("\r", "\n").splitlines():
        text = Text.from_ansi(line.replace("\x1b[2K", "")).plain.rstrip()
        if text.replace("\x1b", "").strip("[?25lh"):
            yield text


def test_log_messages_appear_above_the_bar(
    tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace
) -> None:
    logger = logging.Logger("slm of this test")
    logger.addHandler(StderrHandler())
    shown = show_on(monkeypatch, force_terminal=True, width=80)
    with shown_progress(tiny_spec(), 0, is_shown=True) as update:
        clock.seconds = 60.0
        update(20, OUTPUT)
        logger.info("validating on 65,536 tokens")
    lines = list(lines_of(shown))
    assert lines.count("validating on 65,536 tokens") == 1
    assert lines[-1].endswith("step 20/20  loss 3.214  85 tokens/s")


@pytest.mark.parametrize(("width", "has_name"), [(80, False), (130, True)])
def test_bar_shows_no_numbers_before_the_first_step(
    tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace, width: int, has_name: bool
) -> None:  # fmt: skip
    shown = show_on(monkeypatch, force_terminal=True, width=width)
    monkeypatch.setattr(progress, "display_name", lambda _: "deep_thin 240k, 8.6M tokens, s0")
    spec = tiny_spec(budget={"tokens": 500 * 256})
    with shown_progress(spec, 100, is_shown=True) as update:
        clock.seconds = 10.0
        update(120, OUTPUT)
    first, *_, last = lines_of(shown)
    assert first.endswith("━ step 100/500") and "nan" not in shown.getvalue()
    # 20 steps of 256 tokens in 10 s; 380 steps remain.
    assert last.endswith("━ step 120/500  loss 3.214  512 tokens/s  3 min 10 s remaining")
    name = "deep_thin 240k"
    assert first.startswith(name) == last.startswith(name) == has_name
    assert max(len(line) for line in lines_of(shown)) <= width


def test_log_has_a_line_every_30_seconds_without_a_terminal(
    tiny_spec: Spec,
    monkeypatch: pytest.MonkeyPatch,
    clock: SimpleNamespace,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shown = show_on(monkeypatch, force_terminal=False)
    spec = tiny_spec(budget={"tokens": 500 * 256})
    with caplog.at_level("INFO"), shown_progress(spec, 0, is_shown=True) as update:
        for done in range(1, 501):
            clock.seconds += 0.25  # 1024 tokens/s
            update(done, OUTPUT)
    assert [one.getMessage() for one in caplog.records if one.name.startswith("slm")] == [
        "step 120/500  loss 3.214  1,024 tokens/s  1 min 35 s remaining",
        "step 240/500  loss 3.214  1,024 tokens/s  1 min 5 s remaining",
        "step 360/500  loss 3.214  1,024 tokens/s  35 s remaining",
        "step 480/500  loss 3.214  1,024 tokens/s  5 s remaining",
    ]
    assert shown.getvalue() == ""


def test_nothing_is_shown_without_progress(
    tiny_spec: Spec,
    monkeypatch: pytest.MonkeyPatch,
    clock: SimpleNamespace,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shown = show_on(monkeypatch, force_terminal=True)
    with caplog.at_level("INFO"), shown_progress(tiny_spec(), 0, is_shown=False) as update:
        clock.seconds = 60.0
        update(1, OUTPUT)
    assert shown.getvalue() == "" and not caplog.records
