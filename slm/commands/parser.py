"""Parser and help of `python -m slm`, built from the declarations of its commands."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping

from slm.commands.declare import PROGRAM, Command, Key
from slm.help_text import COLUMN, WIDTH, fill, listing

FOOTER = f"`{PROGRAM} COMMAND --help` prints the keys of a command. train.py trains a model, sweep.py runs a study."


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Formatter with the layout of `slm.help_text`, whatever the width of the terminal."""

    def __init__(self, prog: str):
        super().__init__(prog, width=WIDTH, max_help_position=COLUMN)


def build_parsers(
    commands: Mapping[str, Command],
) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser of the program, and those of its commands by name.

    They parse the options; `Command.parse` parses the settings, which argparse returns as unknown arguments.
    """
    parser = argparse.ArgumentParser(
        PROGRAM,
        usage=f"{PROGRAM} COMMAND [key=value ...] [options]",
        description="Describe shapes, prepare data, evaluate and export trained models.\n\n"
        + listing("commands", {command.name: command.summary for command in commands.values()}),
        epilog=fill(FOOTER),
        formatter_class=HelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="command", help=argparse.SUPPRESS)
    by_name = {}
    for command in commands.values():
        by_name[command.name] = subparsers.add_parser(
            command.name,
            prog=command.program,
            usage=_usage(command),
            description=_description(command),
            epilog=examples(command.examples),
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        for option in command.options:
            by_name[command.name].add_argument(
                f"--{option.name}", help=option.text, action="store_true"
            )
    return parser, by_name


def examples(lines: Iterable[str]) -> str:
    """Format example commands as the last section of a help text."""
    return "\n".join(["examples:", *(f"  {line}" for line in lines)])


def _usage(command: Command) -> str:
    needed = [key.form for key in command.keys if key.required]
    choice = "|".join(key.form for key in command.keys if key.name in command.one_of)
    shown = {key.name for key in command.keys if key.required} | set(command.one_of)
    has_more = command.takes_config or any(key.name not in shown for key in command.keys)
    parts = [command.program, choice, *needed, "[key=value ...]" * has_more]
    parts += [f"[--{option.name}]" for option in command.options]
    return " ".join(part for part in parts if part)


def _description(command: Command) -> str:
    """Return the description and the list of keys; argparse prints its own sections after this text."""
    parts = [f"{command.summary[0].upper()}{command.summary[1:]}.", fill(command.about)]
    if command.keys:
        parts.append(listing("keys", {key.form: key.text + _note(key) for key in command.keys}))
    return "\n\n".join(part for part in parts if part)


def _note(key: Key) -> str:
    return "; required" if key.required else f"; default: {key.default}" if key.default else ""
