"""Load a composed config strictly and report all its problems at once.

Hydra composes YAML files and overrides into a plain tree; `load_config` converts it to the frozen
dataclasses of `slm.config.schema`. Each unknown key, wrong value and broken rule between keys becomes
one line with the key, the value, the rule and a fix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pydantic
from pydantic import TypeAdapter

from slm.config.rules import check_rules
from slm.config.schema import Config, choices_of, field_descriptions, key_of_field
from slm.errors import NO_VALUE, ConfigError, Problem, nearest_name


def load_config(tree: Mapping[str, Any]) -> Config:
    """Convert a composed tree without interpolations to a `Config`.

    First the value of each key is validated, then the rules between keys. A rule that reads a key whose value is
    invalid is not checked: the message about the value is enough.

    Raises:
        ConfigError: listing every unknown key, wrong value and broken rule between keys.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError([Problem("config", NO_VALUE, "must be a table of keys and values")])
    adapter = TypeAdapter(Config)
    pruned = _copy(tree)
    problems: list[Problem] = []
    invalid: set[str] = set()
    while True:
        try:
            config = adapter.validate_python(pruned)
            break
        except pydantic.ValidationError as failure:
            # Remove each wrong key, which then gets its default, so that the rules between the other keys can be
            # checked. Each pass removes at least one key, so the loop terminates.
            for error in failure.errors():
                problem, meant = _to_problem(error)
                problems.append(problem)
                invalid.add(meant)
                _remove(pruned, error["loc"])
    problems += check_rules(config, invalid)
    if problems:
        raise ConfigError(problems)
    return config


def _to_problem(error: Any) -> tuple[Problem, str]:
    """Convert a pydantic error to a Problem, and return it with the key that the user meant to set."""
    parts = [str(part) for part in error["loc"] if not _is_type_tag(part)]
    is_name = error["loc"][-1] == "[key]"  # of a table, not the value under it
    key, value = ".".join(parts), NO_VALUE if is_name else error["input"]
    field = key_of_field(parts)
    if error["type"] == "unexpected_keyword_argument":
        near = _nearest_key(key)
        fix = f"did you mean {near}?" if near else "see python train.py --help"
        return Problem(key, value, "unknown key", fix), near or key
    if error["type"] == "literal_error":
        near = nearest_name(str(error["input"]), choices_of(field), cutoff=0.5)
        fix = f"did you mean {near}?" if near else ""
        return Problem(key, value, f"must be {error['ctx']['expected']}", fix), field
    if error["type"] == "tuple_type" and field == "study.grid" and isinstance(value, Mapping):
        inner = ", ".join(f"{k}: {_shown(v)}" for k, v in _leaves(value, key.split(".", 2)[2]))
        rule = "the dots of a key of study.grid make a table; quote the whole grid"
        return Problem(key, value, rule, f"'study.grid={{{inner}}}'"), field
    if error["type"] == "tuple_type":
        is_scalar = isinstance(value, (str, int, float))
        fix = f"for example [{value}]" if is_scalar else ""
        return Problem(key, value, "must be a list", fix), field
    if error["type"] == "value_error":
        return Problem(key, value, str(error["ctx"]["error"])), field
    rule = str(error["msg"]).removeprefix("Input ").replace("should be", "must be")
    return Problem(key, value, rule), field


def _leaves(table: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of a nested table with their values."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}.{key}")
        else:
            yield f"{prefix}.{key}", value


def _shown(values: Any) -> str:
    """Format a value, or a list of values, as in an override."""
    if isinstance(values, list):
        return "[" + ",".join(map(_shown, values)) + "]"
    return str(values).lower() if isinstance(values, bool) else str(values)


def _is_type_tag(part: object) -> bool:
    """Return True for the parts in brackets that are no keys, such as `[key]`, in a location of pydantic."""
    return isinstance(part, str) and part.startswith("[")


def _nearest_key(key: str) -> str | None:
    """Return the same name in another section, else a similar name in this section, else any similar name."""
    known = [name for name, _, _ in field_descriptions()]
    parent, _, leaf = key.rpartition(".")
    leaves = {name.rpartition(".")[2]: name for name in known}
    siblings = {n.rpartition(".")[2]: n for n in known if n.rpartition(".")[0] == parent}
    sections = {name.partition(".")[0]: name.partition(".")[0] for name in known}
    if leaf in leaves:
        return leaves[leaf]
    for names in (siblings, sections, leaves):
        near = nearest_name(leaf, names, cutoff=0.7)
        if near is not None:
            return names[near]
    return None


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
