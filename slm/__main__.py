"""Command line `python -m slm COMMAND`: parses the arguments and calls the function of the command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pkgutil import resolve_name
from typing import Any, NoReturn

from slm.commands import COMMANDS, PROGRAM, Command
from slm.errors import ConfigError, nearest
from slm.help_text import HelpFormatter, examples, fill
from slm.stdout import exit_when_stdout_closes

FLAG_VALUES = {"true": True, "false": False}  # of --flag=VALUE


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        PROGRAM,
        description="Describe shapes, prepare data, list and compare runs, evaluate and export trained models.",
        epilog=fill(
            f"`{PROGRAM} COMMAND --help` prints the keys of a command. train.py trains a model, sweep.py runs a study."
        ),
        formatter_class=HelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        about = f"{command.summary[0].upper()}{command.summary[1:]}. {command.about}"
        if command.keys:
            about += " An option with a value can also be written as key=value."
        subparser = subparsers.add_parser(
            name,
            help=command.summary,
            description=fill(about),
            epilog=examples(command.examples),
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        if command.keys is None:
            overrides: dict[str, Any] = {"nargs": "*", "metavar": "key=value"}
            subparser.add_argument("overrides", help="settings as for train.py", **overrides)
        for argument, settings in command.positional.items():
            subparser.add_argument(argument, **settings)
        for key, settings in (command.keys or {}).items():
            subparser.add_argument(f"--{key}", **settings)
        for flag, text in command.flags.items():
            subparser.add_argument(f"--{flag}", action="store_true", help=text)
    return parser


def parse(words: Sequence[str]) -> tuple[Command, dict[str, Any]]:
    """Return the command and the arguments of its function.

    Raises:
        SystemExit: after the help (code 0), or after a message about an invalid argument (code 2).
    """
    words = list(words) or ["--help"]
    if words[0] == "help":
        words = [*words[1:], "--help"]
    is_pair = " ".join(words[:2]) in COMMANDS
    name, settings = (" ".join(words[:2]), words[2:]) if is_pair else (words[0], words[1:])
    command = COMMANDS.get(name)
    if command is not None:
        settings = _check_options(name, command, settings)
    elif not name.startswith("-"):
        _exit(f"{PROGRAM} {name}: unknown command; {nearest(name, COMMANDS)}")
    arguments = vars(build_parser().parse_args([name, *settings]))
    return COMMANDS[arguments.pop("command")], arguments


def _check_options(name: str, command: Command, words: Sequence[str]) -> list[str]:
    """Return the words with key=value as --key=value; exit with the nearest name if an option is unknown."""
    if command.keys is None:
        # argparse accepts the overrides only in one group.
        words = sorted(words, key=lambda word: word.startswith("-"))
    keys = command.keys or {}
    known = [*keys, *command.flags, "help"]
    checked: list[str] = []
    for word in words:
        option, separator, value = word.removeprefix("--").partition("=")
        option = option.replace("-", "_")
        is_value = bool(checked) and checked[-1].removeprefix("--") in keys  # of --key VALUE
        is_path = bool(command.positional) and "/" in option  # that contains a =
        if is_value:
            checked[-1] += f"={word}"
        elif is_path or not (word.startswith("--") or (separator and command.keys is not None)):
            checked.append(word)
        elif option in command.replaced:
            _exit(f"{PROGRAM} {name}: unknown option {option}; {command.replaced[option]}")
        elif option not in known:
            _exit(f"{PROGRAM} {name}: unknown option {option}; {nearest(option, known)}")
        elif option in command.flags and separator:
            if value not in FLAG_VALUES:
                _exit(
                    f"{PROGRAM} {name}: {option}={value} must be true or false (or give --{option})"
                )
            checked += [f"--{option}"] if FLAG_VALUES[value] else []
        elif separator and not value and option not in command.may_be_empty:
            _exit(f"{PROGRAM} {name}: {option} has no value")
        else:
            checked.append(f"--{option}{separator}{value}")
    # argparse accepts the arguments without a key only in one group.
    return sorted(checked, key=lambda word: word.startswith("-")) if command.positional else checked


def _exit(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(ConfigError.exit_code)


def main() -> NoReturn:
    with exit_when_stdout_closes():
        command, arguments = parse(sys.argv[1:])
        from slm.cli import run_and_exit  # imports Hydra, which help does not need

        run_and_exit(lambda: resolve_name(command.function)(**arguments))


if __name__ == "__main__":
    main()
