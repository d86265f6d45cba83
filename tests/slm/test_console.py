"""Tables that fit a width: whole columns are left out, and no number is cut."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from slm.console import PIPE_WIDTH, Column, FittedTable, console, print_lines
from slm.formatting import BYTE_UNITS, TIME_UNITS, count, in_one_unit, scientific


def printed(table: FittedTable, width: int) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width).print(table)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


TABLE = FittedTable(
    [
        Column("size", ["80k", "128k"], is_left=True),
        Column("tokens", ["150,528", "1,422,336"], rank=1),
        Column("FLOPs", ["9e10", "3.06e12"], rank=2),
        Column("loss", ["2.5931", "2.3112"]),
    ],
    "Runs",
)


def test_columns_of_the_highest_rank_are_left_out_first() -> None:
    # 4 + 9 + 7 + 6 characters and 3 gaps of 2
    assert printed(TABLE, 32)[0] == "Runs"
    assert printed(TABLE, 32)[-1] == "128k  1,422,336  3.06e12  2.3112"
    without_flops = " ".join(printed(TABLE, 31))
    assert "1,422,336  2.3112" in without_flops
    assert "Left out: FLOPs. COLUMNS=32 or a wider terminal shows all columns." in without_flops
    assert "Left out: tokens, FLOPs." in " ".join(printed(TABLE, 12))


@pytest.mark.parametrize("width", range(4, 40))
def test_no_number_is_cut_at_any_width(width: int) -> None:
    lines = printed(TABLE, width)
    assert max(map(cell_len, lines)) <= width and not any("…" in line for line in lines)
    if width >= 12:  # both columns of rank 0
        for number in ("2.5931", "2.3112", "80k", "128k"):
            assert any(number in line for line in lines)


def test_a_column_of_sentences_wraps_between_words_before_others_are_left_out() -> None:
    sentence = Text("loss difference at the largest size")
    table = FittedTable([Column("what", [sentence], wraps=True), Column("SE", ["0.0043"], rank=1)])
    assert printed(table, 30)[-2:] == ["loss difference at the  0.0043", "largest size"]


def test_lines_are_wrapped_with_an_indent_and_paths_stay_whole() -> None:
    stream = io.StringIO()
    path = "runs/" + 40 * "x"
    print_lines(Console(file=stream, width=24), [f"  [a] {path} took 8 h 43 min of time"])
    assert stream.getvalue().splitlines() == [
        "  [a]",
        f"    {path}",
        "    took 8 h 43 min of",
        "    time",
    ]


def test_width_is_that_of_columns_also_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console().width == PIPE_WIDTH
    monkeypatch.setenv("COLUMNS", "73")
    assert console().width == 73


def test_a_column_has_one_unit() -> None:
    assert in_one_unit([38.2, 7092.0, None], TIME_UNITS) == ("hours", ["0.01", "1.97", "?"])
    assert in_one_unit([0.0, 54.23], TIME_UNITS) == ("seconds", ["0.0", "54.2"])
    assert in_one_unit([60, 3599], TIME_UNITS) == ("minutes", ["1.0", "60.0"])
    assert in_one_unit([9.48e5, 1.42e7], BYTE_UNITS) == ("MB", ["0.9", "14.2"])
    assert in_one_unit([3600 * 4819.4], TIME_UNITS) == ("hours", ["4,819"])
    assert in_one_unit([], TIME_UNITS) == ("seconds", [])


def test_numbers_and_nouns() -> None:
    assert (scientific(9e10), scientific(1.574e15), scientific(0.25)) == ("9e10", "1.57e15", "0.25")
    assert (count(1, "job"), count(2, "family", "families")) == ("1 job", "2 families")
