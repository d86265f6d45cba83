"""The errors a user may meet, and how a list of config problems is worded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any


class SlmError(Exception):
    """Something the user can mend; shown as its message alone, without a traceback."""

    exit_code = 1
    was_shown = False  # set by a multirun that has already told of it

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled whole, whatever a subclass is made from: launchers hand errors between processes."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[SlmError], args: tuple[Any, ...], state: dict[str, Any]) -> SlmError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class DataError(SlmError):
    """A corpus, tokenizer or prepared shard is absent, unreadable or not what it was."""


class RunError(SlmError):
    """A run directory cannot be used: busy, damaged, or written by another config."""


class InUse(RunError):
    """A live process works on the run, here or on another machine."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: it may be free later


class DesignRefused(SlmError):
    """The design of a study cannot answer what the study asks."""

    exit_code = 4


class StudyUnfinished(SlmError):
    """A study still has cells to run."""

    exit_code = 3


class Diverged(SlmError):
    """Training reached a loss or gradient that is not finite; a result, not a crash."""

    def __init__(self, message: str, evidence: Mapping[str, Any] | None = None):
        super().__init__(message)
        self.evidence = evidence
        """The step that was not taken, its batch, and the gradient norm of each tensor group."""


class Interrupted(SlmError):
    """Training was asked to stop; its state is saved."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


class PeerFailed(SlmError):
    """Another process of the run met an error, and this one ends with it."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a config."""

    key: str
    value: object
    rule: str
    fix: str = ""

    def __str__(self) -> str:
        shown = "null" if self.value is None else self.value
        return f"{self.key}={shown}: {self.rule}" + (f" ({self.fix})" if self.fix else "")


class ConfigError(SlmError):
    """One or more problems of a config, reported together."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(problems)
        count = len(self.problems)
        title = "1 problem" if count == 1 else f"{count} problems"
        lines = [f"{title} in the configuration:"]
        super().__init__("\n".join([*lines, *(f"  - {problem}" for problem in self.problems)]))


def nearest(asked: str, known: Iterable[object]) -> str:
    """`did you mean NAME?`, or where no known name is near, all of them."""
    names = [str(name) for name in known]
    near = get_close_matches(asked, names, n=1)
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}"
