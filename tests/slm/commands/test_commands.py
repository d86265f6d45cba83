"""Commands of `python -m slm`: help, checks of the arguments, and what their functions receive."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from slm.__main__ import main
from slm.commands import COMMANDS
from slm.commands.declare import Command
from slm.commands.docs import all_help
from slm.commands.parser import build_parsers
from slm.errors import ConfigError
from slm.help_text import WIDTH
from tests.conftest import ROOT, cli_env

EVALUATE = COMMANDS["evaluate"]
NEEDED = ["run=r", "text=t"]


def problems_of(command: Command, *settings: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        command.parse(settings)
    return [str(problem) for problem in caught.value.problems]


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["slm", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_function_accepts_the_declared_keys_and_options(command: Command) -> None:
    names = ["overrides"] if command.takes_config else [key.name for key in command.keys]
    names += [option.name for option in command.options]
    inspect.signature(resolve_name(command.function)).bind(**dict.fromkeys(names))


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_examples_in_the_help_are_valid(command: Command) -> None:
    parser, _ = build_parsers(COMMANDS)
    own = [line for line in command.examples if line.startswith(command.program)]
    assert own
    for line in own:
        known, settings = parser.parse_known_args(line.removeprefix("python -m slm ").split())
        assert known.command == command.name
        command.parse(settings)


def test_values_are_converted_and_defaults_filled_in() -> None:
    assert EVALUATE.parse(["run=runs/a b", "text=x=y", "window=64", "start_token=false"]) == {
        "run": Path("runs/a b"),
        "hf": None,
        "text": "x=y",
        "window": 64,
        "stride": None,
        "document": "file",
        "column": "text",
        "start_token": False,
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["run=r"], ["text: is needed (add text=FILES)"]),
        (["text=t"], ["run: give either run=DIR or hf=DIR"]),
        ([*NEEDED, "hf=h"], ["hf: give either run=DIR or hf=DIR, not both"]),
        (["run=r", "txt=t"], ["txt=t: unknown key (did you mean text?)"]),
        (["run=r", "text="], ["text: has no value (set text=FILES)"]),
        ([*NEEDED, "run=s"], ["run=s: the key is given twice (keep one of them)"]),
        ([*NEEDED, "--jsn"], ["--jsn: unknown option (did you mean --json?)"]),
        (
            [*NEEDED, "window=0"],
            ["window=0: must be a whole number of tokens from 1 (for example window=1024)"],
        ),
        ([*NEEDED, "start_token=0"], ["start_token=0: must be one of true, false"]),
        (
            [*NEEDED, "document=lines", "strid=x"],
            [
                "strid=x: unknown key (did you mean stride?)",
                "document=lines: must be one of file, paragraph, line (did you mean line?)",
            ],
        ),
    ],
)
def test_all_problems_of_the_arguments_are_reported(
    settings: list[str], expected: list[str]
) -> None:
    assert problems_of(EVALUATE, *settings) == expected


def test_config_commands_pass_overrides_on_and_reject_unknown_options() -> None:
    overrides = ["size=200k", "~seed", "model.n_layer=3"]
    assert COMMANDS["describe"].parse(overrides) == {"overrides": overrides}
    (problem,) = problems_of(COMMANDS["describe"], "size=200k", "--jsno")
    assert "did you mean --json?" in problem


@pytest.mark.parametrize("words", [["evalute"], ["help", "evalute"], ["evalute", "--help"]])
def test_mistyped_command_gets_the_nearest_name(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, *words) == 2
    assert capsys.readouterr().err.strip().endswith("unknown command; did you mean evaluate?")


def test_help_lists_commands_and_their_keys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch) == 0
    overview = capsys.readouterr().out
    for words in (["help"], ["--help"], ["-h"]):
        assert run_main(monkeypatch, *words) == 0
        assert capsys.readouterr().out == overview
    for command in COMMANDS.values():
        assert re.search(rf"^  {command.name} +{re.escape(command.summary)}$", overview, re.M)
        assert run_main(monkeypatch, command.name, "--help") == 0
        shown = capsys.readouterr().out
        assert run_main(monkeypatch, "help", command.name) == 0
        assert capsys.readouterr().out == shown
        assert all(key.form in shown and key.text.split()[0] in shown for key in command.keys)
        assert all(f"--{option.name}" in shown for option in command.options)


def test_help_of_all_programs_for_the_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    texts = all_help()
    programs = ["train.py", "sweep.py", "-m analysis", "-m slm"]
    assert set(texts) == {
        *(f"python {program}" for program in programs),
        *(command.program for command in COMMANDS.values()),
    }
    for program, text in texts.items():
        assert program in text
        assert [line for line in text.splitlines() if len(line) > WIDTH] == [], program
    monkeypatch.setenv("COLUMNS", "200")  # the width of the terminal has no effect
    for parser in build_parsers(COMMANDS)[1].values():
        assert parser.format_help() == texts[parser.prog]


@pytest.mark.parametrize("program", ["slm", "analysis"])
def test_help_imports_no_heavy_library(program: str) -> None:
    code = (
        f"import runpy, sys\nsys.argv[1:] = {['--help']!r}\n"
        f"try:\n    runpy.run_module({program!r}, run_name='__main__')\n"
        "except SystemExit as stopped:\n    assert stopped.code == 0\n"
        "heavy = {'torch', 'numpy', 'pandas', 'scipy', 'altair', 'matplotlib', 'hydra', 'pydantic'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "slm", "--help"],
        ["-m", "slm", "describe"],
        ["-m", "slm", "describe", "--json"],
        ["train.py", "--help"],
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
