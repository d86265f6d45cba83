"""Commands of `python -m slm`: help, checks of the arguments, and what their functions receive."""

from __future__ import annotations

import inspect
import os
import shlex
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from slm.__main__ import parse
from slm.commands import COMMANDS, PROGRAM, Command
from slm.errors import ConfigError
from slm.help_text import WIDTH
from tests.conftest import ROOT, cli_env

NEEDED = ["evaluate", "r", "text=t"]


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_function_accepts_the_declared_keys_and_flags(command: Command) -> None:
    keys = ["overrides"] if command.keys is None else [*command.positional, *command.keys]
    names = [*keys, *command.flags]
    inspect.signature(resolve_name(command.function)).bind(**dict.fromkeys(names))


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_examples_in_the_help_are_valid(command: Command) -> None:
    own = [line for line in command.examples if line.startswith(PROGRAM)]
    assert own
    for line in own:
        found, _ = parse(shlex.split(line.removeprefix(PROGRAM)))
        assert found is command


@pytest.mark.parametrize("form", [["{}={}"], ["--{}={}"], ["--{}", "{}"]], ids=" ".join)
def test_values_are_converted_and_defaults_filled_in(form: list[str]) -> None:
    given = {"text": "x=y", "window": "64", "start_token": "false", "out": "a b"}
    words = ["evaluate", "runs/a b", "llama", "--json"]
    for key, value in given.items():
        words += "\0".join(form).format(key, value).split("\0")
    _, arguments = parse(words)
    command = COMMANDS["evaluate"]
    assert command.keys is not None
    absent = dict.fromkeys([*command.keys, *command.flags])
    assert arguments == absent | {
        "models": [Path("runs/a b"), Path("llama")],
        "text": "x=y",
        "window": 64,
        "start_token": False,
        "out": Path("a b"),
        "speed": False,
        "documents": False,
        "json": True,
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["evalute"], "unknown command; did you mean evaluate?"),
        (["help", "evalute"], "unknown command; did you mean evaluate?"),
        (["evaluate"], "required: MODEL"),
        (["evaluate", "run=r", "text=t"], "unknown option run; write the folder without run="),
        (["evaluate", "--hf=h", "text=t"], "unknown option hf; write the folder without hf="),
        (["evaluate", "r", "txt=t"], "unknown option txt; did you mean text?"),
        (["evaluate", "r", "text="], "text has no value"),
        ([*NEEDED, "--jsn"], "unknown option jsn; did you mean json?"),
        (["describe", "size=200k", "--jsno"], "unknown option jsno; did you mean json?"),
        ([*NEEDED, "window=0"], "'0' must be a whole number from 1"),
        ([*NEEDED, "start_token=0"], "'0' must be true or false"),
        (["runs", "sort=los"], "'loss'"),
        ([*NEEDED, "json=yes"], "json=yes must be true or false (or give --json)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_argument_is_one_message_with_the_fix(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(words)
    assert stopped.value.code == ConfigError.exit_code
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "expected"),
    [("--json", True), ("--json=true", True), ("json=true", True), ("json=false", False)],
)
def test_flags_may_have_a_value(word: str, expected: bool) -> None:
    assert parse([*NEEDED, word])[1]["json"] is expected


def test_overrides_are_passed_on_in_their_order() -> None:
    _, arguments = parse(["describe", "size=200k", "--json", "~seed", "model.n_layer=3"])
    assert arguments == {"overrides": ["size=200k", "~seed", "model.n_layer=3"], "json": True}


def test_commands_of_two_words_and_arguments_without_a_key() -> None:
    command, arguments = parse(["runs", "a/b=c", "d", "sort=loss"])
    assert command is COMMANDS["runs"]
    assert arguments == {"folder": [Path("a/b=c"), Path("d")], "sort": "loss", "json": False}
    _, arguments = parse(["evaluate", "a", "text=t", "b", "--window", "8", "c"])
    assert arguments["models"] == [Path("a"), Path("b"), Path("c")] and arguments["window"] == 8
    command, arguments = parse(["runs", "diff", "x", "y", "--runs_dir", "z"])
    assert command is COMMANDS["runs diff"]
    assert arguments == {"first": "x", "second": "y", "runs_dir": Path("z"), "json": False}


def help_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse(words)
    assert not stopped.value.code
    return capsys.readouterr().out


def test_help_lists_commands_and_their_keys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overview = help_of([], capsys)
    for words in (["help"], ["--help"], ["-h"]):
        assert help_of(words, capsys) == overview
    for name, command in COMMANDS.items():
        assert name in overview and command.summary in overview
        shown = help_of([name, "--help"], capsys)
        assert help_of(["help", name], capsys) == shown
        assert all(f"--{key}" in shown for key in (*(command.keys or ()), *command.flags))
        assert max(map(len, shown.splitlines())) <= WIDTH
        monkeypatch.setenv("COLUMNS", "40")  # the width of the terminal has no effect
        assert help_of([name, "--help"], capsys) == shown


@pytest.mark.parametrize("program", ["slm", "analysis"])
def test_help_imports_no_heavy_library(program: str) -> None:
    code = (
        f"import runpy, sys\nsys.argv[1:] = {['--help']!r}\n"
        f"try:\n    runpy.run_module({program!r}, run_name='__main__')\n"
        "except SystemExit as stopped:\n    assert stopped.code == 0\n"
        "heavy = {'torch', 'numpy', 'pandas', 'scipy', 'altair', 'hydra', 'pydantic'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "slm", "describe"],
        ["sweep.py", "study=smoke", "action=plan"],
        ["-m", "analysis", "--help"],
    ],
    ids=" ".join,
)
def test_closed_pipe_ends_a_program_without_a_message(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    options: dict[str, Any] = {"cwd": ROOT, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, stdout=writing, env=cli_env(), check=False, **options)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode in {0, 1}  # argparse ignores that its help could not be written
