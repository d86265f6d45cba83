"""Finished runs in the folder of a study that are none of its cells, and in which settings they differ from these."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from slm.errors import DataError, RunError
from slm.formatting import count, short_count
from slm.run.display_name import flatten
from slm.run.spec import RunSpec
from slm.studies.cells import Cell
from slm.tracking.result import RunResult
from slm.tracking.run_dir import RunDirectory

Facts = Mapping[str, Any]
Groups = Mapping[tuple[str, ...], Sequence[Facts]]
"""Differing settings of each run that is no cell, by the names of these settings."""
SHAPE, TOKENS, WARMUP = "shape", "tokens", "schedule.warmup_tokens"
CAUSES = {
    SHAPE: "the aspect ratios of the study and ladder.* set the shapes of a size",
    WARMUP: "the warmup follows the shortest token budget of the study",
}


def left_out_lines(cells: Sequence[Cell]) -> list[str]:
    """Return one sentence per set of differing settings of the runs that are no cells, and how to list the runs."""
    return describe_left_out(cells, group_left_out(cells))


def group_left_out(cells: Sequence[Cell]) -> Groups:
    """Group the runs that are no cells by the settings in which they differ; runs that tuned a rate are not among them."""
    groups: dict[tuple[str, ...], list[Facts]] = defaultdict(list)
    cell_facts = [(cell, _facts_of_spec(cell.spec)) for cell in cells]
    tunes = cells[0].spec.config.study.lr_policy == "tuned"
    for run, result in left_out(cells):
        differing = _differing(run, result, cell_facts)
        if not (tunes and set(differing) == {"optimizer.lr"}):  # these runs chose the rates
            groups[tuple(differing)].append(differing)
    return groups


def describe_left_out(cells: Sequence[Cell], groups: Groups) -> list[str]:
    """Return one sentence per group, and how to list or to use these runs."""
    lines = [_line(keys, found) for keys, found in groups.items()]
    if lines:
        folder = cells[0].run.path.parent
        lines.append(
            f"To use such runs, restore the settings; to keep both, set another study.name; python -m slm runs {folder} "
            "lists them"
        )
    return lines


def left_out(cells: Sequence[Cell]) -> Iterator[tuple[RunDirectory, RunResult]]:
    """Yield the finished runs in the folder of the study that are none of its cells."""
    ids = {cell.spec.run_id for cell in cells}
    folder = cells[0].run.path.parent
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name in ids or path.name.startswith(".") or not path.is_dir():
            continue
        result = None
        with suppress(RunError):
            result = RunDirectory(path).result()
        if result is not None and result.status == "finished" and result.run_id not in ids:
            yield RunDirectory(path), result


def _line(keys: tuple[str, ...], found: Sequence[Facts]) -> str:
    who = (
        "belongs to no cell of the study: it differs"
        if len(found) == 1
        else ("belong to no cell of the study: they differ")
    )
    details = [CAUSES[key] for key in keys if key in CAUSES]
    values = {str(differing[keys[0]]) for differing in found}
    if len(keys) == len(values) == 1 and not details:
        details = [*values]
    detail = f" ({'; '.join(details)})" if details else ""
    runs = count(len(found), "finished run")
    return f"{runs} in this folder {who} in {', '.join(keys)}{detail}"


def _differing(
    run: RunDirectory, result: RunResult, cells: Sequence[tuple[Cell, Facts]]
) -> dict[str, str]:
    """Return the settings in which a run differs from the most similar cells, with all values as text."""
    rung = result.size if result.size is not None else result.rung
    own = [(cell, facts) for cell, facts in cells if cell.family == result.family]
    if not own:
        return {"family": f"{result.family} is not in the study"}
    own = [(cell, facts) for cell, facts in own if cell.rung == rung]
    if not own:
        size = short_count(rung) if isinstance(rung, int) else rung
        return {"size": f"{size} is not in the study"}
    facts = _facts_of_result(result)
    differences = [_difference(facts, other) for _, other in own]
    nearest = min(range(len(own)), key=lambda index: len(differences[index]))
    if keys := differences[nearest]:
        alike = [
            other
            for (_, other), each in zip(own, differences, strict=True)
            if each.keys() == keys.keys()
        ]
        if TOKENS in keys:
            keys.pop(WARMUP, None)  # it follows from the tokens
        return {key: _values(key, facts, alike) for key in keys}
    with suppress(RunError, DataError, KeyError):  # a damaged config, or a corpus that is gone
        identities = run.spec().identity, own[nearest][0].spec.identity
        run_values, cell_values = map(flatten, identities)
        if keys := _difference(run_values, cell_values):
            return {key: _values(key, run_values, [cell_values]) for key in keys}
    return {"recipe": "not in result.json"}


def _difference(run: Facts, cell: Facts) -> dict[str, None]:
    """Return the names of the settings that differ, in the order of the cell."""
    return {key: None for key in {**cell, **run} if run.get(key) != cell.get(key)}


def _values(key: str, run: Facts, cells: Sequence[Facts]) -> str:
    values = dict.fromkeys(str(cell.get(key)) for cell in cells)
    return f"{run.get(key)} there, {' and '.join(values)} in the study"


def _facts_of_result(result: RunResult) -> Facts:
    return {
        SHAPE: result.shape,
        TOKENS: result.tokens,
        "seed": result.seed,
        "optimizer.lr": result.peak_lr,
        "optimizer.global_batch_tokens": result.batch_tokens,
        "schedule.kind": result.schedule["kind"],
        WARMUP: result.schedule.get("warmup_tokens"),
        "parametrization.kind": result.parametrization,
        "trainer.precision": result.precision,
    }


def _facts_of_spec(spec: RunSpec) -> Facts:
    config = spec.config
    return {
        SHAPE: spec.shape.as_dict(),
        TOKENS: spec.tokens,
        "seed": config.seed,
        "optimizer.lr": config.optimizer.lr,
        "optimizer.global_batch_tokens": spec.batch_tokens,
        "schedule.kind": config.schedule.kind,
        WARMUP: spec.warmup_tokens,
        "parametrization.kind": config.parametrization.kind,
        "trainer.precision": config.trainer.precision,
    }
