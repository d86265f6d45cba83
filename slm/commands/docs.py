"""Help texts of all programs, for the documentation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from slm.commands import COMMANDS
from slm.commands.parser import build_parsers

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {
    "python train.py": ("train.py",),
    "python sweep.py": ("sweep.py",),
    "python -m analysis": ("-m", "analysis"),
}


def all_help() -> dict[str, str]:
    """Return the help text of each program and command, such as "python -m slm evaluate", by its name.

    The texts do not depend on the terminal or the Python version. Takes about 2 s, because train.py, sweep.py
    and analysis run in processes of their own.
    """
    parser, by_name = build_parsers(COMMANDS)
    texts = {name: _output_of(arguments) for name, arguments in PROGRAMS.items()}
    texts[parser.prog] = parser.format_help()
    return texts | {each.prog: each.format_help() for each in by_name.values()}


def _output_of(arguments: tuple[str, ...]) -> str:
    command = [sys.executable, *arguments, "--help"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout
