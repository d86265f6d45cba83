"""Parser and help of `python -m slm`, built from the declarations of its commands."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable, Mapping

from slm.commands.declare import PROGRAM, Command, Key

WIDTH = 100  # fixed, so that the help in the documentation is the help in every terminal
INDENT = 24  # column of the texts
FOOTER = f"`{PROGRAM} COMMAND --help` prints the keys of a command. train.py trains a model, sweep.py runs a study."


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Formatter of a fixed width, whatever the terminal's."""

    def __init__(self, prog: str):
        super().__init__(prog, width=WIDTH, max_help_position=INDENT)


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


def fill(text: str) -> str:
    """Wrap a paragraph to the width of the help."""
    return textwrap.fill(text, WIDTH)


def examples(lines: Iterable[str]) -> str:
    """Format example commands as the last section of a help text."""
    return "\n".join(["examples:", *(f"  {line}" for line in lines)])


def listing(title: str, rows: Mapping[str, str]) -> str:
    """Format a titled list of names and their texts."""
    return "\n".join([f"{title}:", *(_row(name, text) for name, text in rows.items())])


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


def _row(name: str, text: str) -> str:
    """Format a name and its text in two columns, as argparse formats an option."""
    margin = " " * INDENT
    body = textwrap.fill(
        text, WIDTH, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False
    )
    name = f"  {name}"
    return f"{name}\n{body}" if len(name) > INDENT - 2 else name.ljust(INDENT) + body[INDENT:]
