"""Code blocks, commands and links of README.md and docs/*.md."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.conftest import ROOT

FENCE = re.compile(r"^```([a-z]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
OF_OUR_PYTHON = re.compile(r"^\.venv/bin/")
PROGRAMS = (
    "python train.py",
    "python sweep.py",
    "python -m slm",
    "python -m analysis",
    "python -m tests.",
    "torchrun ",
    "srun ",
    "make",
    "pip install",
)
# Not ours, and without effect on the commands after them.
OTHER_PROGRAMS = "git clone ", "wandb login"
SCRIPTS = "train.py", "sweep.py"
MULTI_PROCESS = "torchrun", "srun"


@dataclass(frozen=True)
class Command:
    """A command of a page: the words of the program, its arguments, and where it stands."""

    program: tuple[str, ...]
    arguments: tuple[str, ...]
    page: str
    output: str = ""
    """The text after the command in a block where commands begin with `$`."""

    @property
    def name(self) -> str:
        """Script or module that is run, or the program itself (make, pip)."""
        return self.program[-1]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join((self.name, *self.arguments))}"[:90]


@dataclass(frozen=True)
class Page:
    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def links(self) -> list[str]:
        """Targets of all links and images outside of code."""
        return LINK.findall(INLINE.sub("", FENCE.sub("", self.text)))

    @property
    def inline_code(self) -> list[str]:
        return [" ".join(code.split()) for code in INLINE.findall(FENCE.sub("", self.text))]

    def blocks(self, language: str) -> list[str]:
        """Return the blocks marked with a language; those without a mark are commands."""
        return [text for mark, text in FENCE.findall(self.text) if mark == language]

    def commands(self) -> Iterator[Command]:
        for block in self.blocks(""):
            yield from self._block_commands(block)
        for code in self.inline_code:
            command = self.parse(code)
            if command is not None:
                yield _replaced(command, [a for a in command.arguments if a != "..."])

    def _block_commands(self, block: str) -> Iterator[Command]:
        """Yield the commands of a block; `...` stands for the arguments of the block's first command."""
        first: tuple[str, ...] = ()
        for line, output in command_lines(block):
            command = self.parse(line, output)
            if command is None:
                continue
            if "..." in command.arguments:
                given = [a for a in command.arguments if a != "..."]
                keys = {a.partition("=")[0] for a in given}
                rest = [a for a in first if a.partition("=")[0] not in keys]
                command = _replaced(command, [*given, *rest])
            first = first or command.arguments
            yield command

    def parse(self, line: str, output: str = "") -> Command | None:
        """Return the command of a line, without comments and placeholders; None if it is not one of ours."""
        line = OF_OUR_PYTHON.sub("", line)
        if not line.startswith(PROGRAMS):
            return None
        words = shlex.split(line, comments=True)
        if words[0] in MULTI_PROCESS and not set(words) & set(SCRIPTS):
            return None
        end = _end_of_program(words)
        arguments = tuple(a for a in words[end:] if not a.endswith("=..."))
        return Command(tuple(words[:end]), arguments, self.name, output)


def _replaced(command: Command, arguments: Sequence[str]) -> Command:
    return Command(command.program, tuple(arguments), command.page, command.output)


def _end_of_program(words: Sequence[str]) -> int:
    """Return how many words name the program: `python -m slm`, `torchrun OPTIONS train.py`, `make`, `pip install`."""
    for number, word in enumerate(words):
        if word in SCRIPTS:
            return number + 1
        if word == "-m" and words[0] == "python":
            return number + 2
    return 2 if words[0] == "pip" else 1


def command_lines(block: str) -> Iterator[tuple[str, str]]:
    """Yield each command line of a block with the output below it, which a block has if it begins with `$`."""
    lines = block.replace("\\\n", " ").splitlines()
    if not block.startswith("$ "):
        yield from ((line, "") for line in lines if line.strip())
        return
    for number, line in enumerate(lines):
        if line.startswith("$ "):
            yield line.removeprefix("$ "), "\n".join(lines[number + 1 :])


PAGES = [Page(ROOT / "README.md"), *map(Page, sorted((ROOT / "docs").glob("*.md")))]


def all_commands() -> list[Command]:
    """Return the commands of all pages; of equal ones the first."""
    found: dict[tuple[object, ...], Command] = {}
    for page in PAGES:
        for command in page.commands():
            found.setdefault((command.program, command.arguments, command.output), command)
    return list(found.values())
