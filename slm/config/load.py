"""Load a composed config strictly and report all its problems at once.

Hydra composes YAML files and overrides into a plain tree; `load_config` converts it to the frozen
dataclasses of `slm.config.schema`. Each unknown key, wrong value and broken rule between keys becomes
one line with the key, the value, the rule and a fix.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import pydantic
from pydantic import TypeAdapter

from slm.config.rules import check_rules
from slm.config.schema import Config, field_descriptions
from slm.errors import ConfigError, Problem


def load_config(tree: Mapping[str, Any]) -> Config:
    """Convert a composed tree without interpolations to a `Config`.

    Raises:
        ConfigError: listing every unknown key, wrong value and broken rule between keys.
    """
    adapter = TypeAdapter(Config)
    pruned = _copy(tree)
    problems: list[Problem] = []
    while True:
        try:
            config = adapter.validate_python(pruned)
            break
        except pydantic.ValidationError as failure:
            # Remove each wrong key (it then gets its default), so that the rules between the other keys
            # are still checked. Each pass removes at least one key, so the loop terminates.
            for error in failure.errors():
                problems.append(_to_problem(error))
                _remove(pruned, error["loc"])
    suspect = {problem.key for problem in problems}
    problems += [p for p in check_rules(config) if not _depends_on(p, suspect)]
    if problems:
        raise ConfigError(problems)
    return config


def _to_problem(error: Any) -> Problem:
    """Convert a pydantic error to a Problem, with the nearest valid name or value as its fix."""
    key = ".".join(str(part) for part in error["loc"] if not _is_type_tag(part))
    value = error["input"]
    if error["type"] == "unexpected_keyword_argument":
        return Problem(key, value, "unknown key", _nearest_key(key))
    if error["type"] == "literal_error":
        allowed = error["ctx"]["expected"]
        choices = [word.strip("'") for word in allowed.replace(" or ", ", ").split(", ")]
        near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
        return Problem(key, value, f"must be {allowed}", f"did you mean {near[0]}?" if near else "")
    if error["type"] == "tuple_type":
        is_scalar = isinstance(value, (str, int, float))
        return Problem(key, value, "must be a list", f"for example [{value}]" if is_scalar else "")
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    return Problem(key, value, message.replace("should be", "must be"))


def _is_type_tag(part: object) -> bool:
    """Return True for the union members, such as `constrained-int`, that pydantic adds to a location."""
    return isinstance(part, str) and ("[" in part or part.startswith("constrained-"))


def _nearest_key(key: str) -> str:
    """Suggest the same name in another section, else a similar name in this section, else any similar name."""
    known = [name for name, _, _ in field_descriptions()]
    parent, _, leaf = key.rpartition(".")
    sections = sorted({name.partition(".")[0] for name in known})
    leaves = {name.rpartition(".")[2]: name for name in known}
    siblings = {n.rpartition(".")[2]: n for n in known if n.rpartition(".")[0] == parent}
    near = [leaves[leaf]] if leaf in leaves else _similar(leaf, siblings)
    near = near or _similar(leaf, {name: name for name in sections}) or _similar(leaf, leaves)
    return f"did you mean {near[0]}?" if near else "see python train.py --help"


def _similar(word: str, names: Mapping[str, str]) -> list[str]:
    return [names[match] for match in difflib.get_close_matches(word, names, n=1, cutoff=0.7)]


def _depends_on(problem: Problem, suspect: set[str]) -> bool:
    """Return True if the rule may be broken only because the value of a suspect key was removed.

    The message of a rule names the other keys that the rule reads.
    """
    if problem.key in suspect or any(key in problem.rule for key in suspect):
        return True
    section_name = problem.key.partition(".")[0]
    return problem.value is None and any(key.partition(".")[0] == section_name for key in suspect)


def _copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in tree.items()}


def _remove(tree: dict[str, Any], location: tuple[Any, ...]) -> None:
    """Delete the deepest key of a pydantic location that exists in the tree."""
    parent, key = tree, location[0]
    for part in location[1:]:
        if not isinstance(parent.get(key), dict) or part not in parent[key]:
            break
        parent, key = parent[key], part
    parent.pop(key, None)
