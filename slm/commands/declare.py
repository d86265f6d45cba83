"""Declaration of a command: its keys and options, and the conversion of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from slm.errors import NO_VALUE, ConfigError, Problem, nearest, nearest_name

PROGRAM = "python -m slm"


@dataclass(frozen=True)
class Key:
    """A setting that is given as key=value."""

    name: str
    metavar: str = ""
    """Placeholder of the value; not needed with `choices`."""
    text: str = ""
    choices: tuple[str, ...] = ()
    convert: Callable[[str], Any] = str
    """Converts the text of a value; raises ValueError with the rule that the value breaks."""
    default: str | None = None
    """Value of the key if it is not given, as text; without one, the function receives None."""
    required: bool = False
    example: str = ""
    """Valid value, for the message about an invalid one."""

    @property
    def form(self) -> str:
        """Return the key with its placeholder or choices, such as window=TOKENS."""
        return f"{self.name}={'|'.join(self.choices) or self.metavar}"

    def parse(self, text: str) -> Any:
        """Convert the text of a value.

        Raises:
            ConfigError: if the value is invalid.
        """
        if self.choices and text not in self.choices:
            near = nearest_name(text, self.choices)
            rule, fix = f"must be one of {', '.join(self.choices)}", f"did you mean {near}?"
            raise ConfigError([Problem(self.name, text, rule, fix if near else "")])
        try:
            return self.convert(text)
        except ValueError as error:
            fix = f"for example {self.name}={self.example}" if self.example else ""
            raise ConfigError([Problem(self.name, text, str(error), fix)]) from None


@dataclass(frozen=True)
class Option:
    """A switch that is given as --name."""

    name: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command of `python -m slm`.

    `function` is the name of its function as MODULE:NAME, imported when the command runs. It is called with
    one keyword argument for each key and option. With `takes_config` the command has no keys of its own, and
    its function receives the configuration overrides as the argument `overrides`.
    """

    name: str
    summary: str
    """One line without a period, in the imperative."""
    function: str
    about: str = ""
    keys: tuple[Key, ...] = ()
    one_of: tuple[str, ...] = ()
    """Keys of which exactly one must be given."""
    options: tuple[Option, ...] = ()
    takes_config: bool = False
    examples: tuple[str, ...] = ()

    @property
    def program(self) -> str:
        return f"{PROGRAM} {self.name}"

    def run(self, settings: Sequence[str], options: dict[str, bool]) -> None:
        """Check the arguments and call the function.

        Args:
            settings: the arguments other than known options, as typed.
            options: whether each option is given, by name.

        Raises:
            ConfigError: listing all problems of the arguments.
        """
        values = self.parse(settings)
        resolve_name(self.function)(**values, **options)

    def parse(self, settings: Sequence[str]) -> dict[str, Any]:
        """Return the value of each key, converted; for `takes_config` the overrides.

        Raises:
            ConfigError: listing unknown options and keys, invalid values, and missing keys.
        """
        problems = [
            Problem(word, NO_VALUE, "unknown option", nearest(word, self._option_names()))
            for word in settings
            if word.startswith("-")
        ]
        words = [word for word in settings if not word.startswith("-")]
        values: dict[str, Any] = {"overrides": words}
        if not self.takes_config:
            values, found = self._parse_keys(words)
            problems += found
        if problems:
            raise ConfigError(problems, f"arguments; see {self.program} --help")
        return values

    def _option_names(self) -> list[str]:
        return [*(f"--{option.name}" for option in self.options), "--help"]

    def _parse_keys(self, words: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
        keys = {key.name: key for key in self.keys}
        problems: list[Problem] = []
        texts = {key.name: key.default for key in self.keys if key.default is not None}
        given: set[str] = set()
        for word in words:
            name, separator, text = word.partition("=")
            value = text if separator else NO_VALUE
            if name not in keys:
                problems.append(Problem(name, value, "unknown key", nearest(name, keys)))
            elif not text:
                fix = f"set {keys[name].form}"
                problems.append(Problem(name, NO_VALUE, "has no value", fix))
            elif name in given:
                problems.append(Problem(name, value, "the key is given twice", "keep one of them"))
            else:
                texts[name] = text
            given.add(nearest_name(name, keys) or name)  # a mistyped key is not reported as missing
        problems += self._check_presence(given)
        values: dict[str, Any] = dict.fromkeys(keys)
        for name, text in texts.items():
            try:
                values[name] = keys[name].parse(text)
            except ConfigError as error:
                problems += error.problems
        return values, problems

    def _check_presence(self, given: set[str]) -> list[Problem]:
        problems = [
            Problem(key.name, NO_VALUE, "is needed", f"add {key.form}")
            for key in self.keys
            if key.required and key.name not in given
        ]
        forms = " or ".join(key.form for key in self.keys if key.name in self.one_of)
        present = [name for name in self.one_of if name in given]
        if self.one_of and len(present) != 1:
            rule = f"give either {forms}, not both" if present else f"give either {forms}"
            problems.append(Problem((present[-1:] or self.one_of)[0], NO_VALUE, rule))
        return problems


def count_of(unit: str) -> Callable[[str], int]:
    """Return the conversion of a whole number from 1, for `Key.convert`."""

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"must be a whole number of {unit} from 1")
        return int(text)

    return convert
