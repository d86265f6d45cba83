"""Entry point of `python -m slm COMMAND`; `slm.commands` declares the commands."""

from __future__ import annotations

import sys
from typing import NoReturn

from slm.commands import COMMANDS
from slm.commands.parser import build_parsers
from slm.errors import ConfigError, nearest
from slm.stdout import exit_when_stdout_closes


def main() -> NoReturn:
    with exit_when_stdout_closes():
        words = sys.argv[1:] or ["--help"]
        if words[0] == "help":
            words = [*words[1:2], "--help"]
        if words[0] not in {*COMMANDS, "-h", "--help"}:
            fix = nearest(words[0], COMMANDS)
            print(f"python -m slm {words[0]}: unknown command; {fix}", file=sys.stderr)
            sys.exit(ConfigError.exit_code)
        known, settings = build_parsers(COMMANDS)[0].parse_known_args(words)
        options = vars(known)
        command = COMMANDS[options.pop("command")]
        from slm.cli import run_and_exit  # late: imports Hydra, which help does not need

        run_and_exit(lambda: command.run(settings, options))


if __name__ == "__main__":
    main()
