"""Compared pairs and missing cells of a study whose cells are not all finished."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from analysis.report.partial import Partial
from analysis.study_actions.plan import design_of
from slm.errors import DataError
from slm.formatting import count, short_count
from slm.studies.cells import Cell, RungKey, contrast_of, jobs_of
from slm.studies.grid_table import rung_label, rungs_of

MAX_LISTED = 12  # needed cells; of more, their number only
Reasons = Callable[[Sequence[Cell]], list[str]]
"""Returns why a set of runs does not allow an estimate; empty if it does."""


def partial_of(reported: Sequence[Cell], missing: Sequence[Cell]) -> Partial | None:
    """Describe a study of which some cells are not in the report; None if none is missing.

    Raises:
        DataError: if one of the two compared families has no reported cell.
    """
    if not missing:
        return None
    _check_contrast(reported, missing)
    is_interim = any(cell.state != "diverged" for cell in missing)
    lines = tuple(_lines(reported, missing, is_interim))
    return Partial(len(reported), len(reported) + len(missing), is_interim, lines)


def _state(cell: Cell) -> str:
    """Return the state of a cell that is not in the report."""
    return "with an unreadable result.json" if cell.state == "finished" else cell.state


def describe_states(cells: Sequence[Cell]) -> str:
    """Return the number of cells by state, such as `8 planned, 2 diverged`."""
    states = Counter(map(_state, cells))
    return ", ".join(f"{number} {state}" for state, number in states.most_common())


def _check_contrast(reported: Sequence[Cell], missing: Sequence[Cell]) -> None:
    pair = contrast_of([*reported, *missing])
    for family, other in (pair, pair[::-1]):
        own = [cell for cell in missing if cell.family == family]
        if own and not any(cell.family == family for cell in reported):
            diverged = all(cell.state == "diverged" for cell in own)
            fix = "lower optimizer.lr" if diverged else "continue with action=run"
            raise DataError(
                f"no comparison: no cell of {family} is finished ({describe_states(own)}), and the study compares it with "
                f"{other}; {fix}"
            )


def _lines(reported: Sequence[Cell], missing: Sequence[Cell], is_interim: bool) -> Iterator[str]:
    cells = [*reported, *missing]
    line = f"{len(reported)} of {len(cells)} cells are finished ({describe_states(missing)})."
    if is_interim:
        line += (
            " Further runs can change all estimates; p values and intervals are valid only if the decision to stop does "
            "not depend on them."
        )
    yield line
    pair = contrast_of(cells)
    if pair[0] != pair[1]:
        yield _pairs_line(reported, cells, pair)
    families = dict.fromkeys((*pair, *(cell.family for cell in cells)))
    listed = [_missing_of(family, cells, missing) for family in families]
    yield f"Missing: {'; '.join(filter(None, listed))}."
    if is_interim and pair[0] != pair[1]:
        yield from _needed_lines(reported, missing, pair)


def _pairs_line(reported: Sequence[Cell], cells: Sequence[Cell], pair: tuple[str, str]) -> str:
    planned, done = _pairs(cells, pair), _pairs(reported, pair)
    found = f"{pair[0]} and {pair[1]} are both finished at {len(done)} of "
    found += count(
        len(planned), "combination of size and tokens", "combinations of size and tokens"
    )
    sizes = _sizes(cells, done, planned)
    return f"{found}: {sizes}." if sizes else f"{found}, so there is no pair to compare."


def _pairs(cells: Sequence[Cell], pair: tuple[str, str]) -> set[tuple[RungKey, int]]:
    """Return the sizes and token budgets at which both families have a cell."""
    sides = [{(c.rung, c.spec.tokens) for c in cells if c.family == family} for family in pair]
    return sides[0] & sides[1]


def _missing_of(family: str, cells: Sequence[Cell], missing: Sequence[Cell]) -> str:
    own = [cell for cell in cells if cell.family == family]
    lacking = {(cell.rung, cell.spec.tokens) for cell in missing if cell.family == family}
    sizes = _sizes(own, lacking, {(cell.rung, cell.spec.tokens) for cell in own})
    return f"{family} at {sizes}" if sizes else ""


def _sizes(
    cells: Sequence[Cell],
    chosen: set[tuple[RungKey, int]],
    among: set[tuple[RungKey, int]],
) -> str:
    """List sizes, with their token budgets if not all of them are chosen."""
    texts = []
    for rung in rungs_of(cells):
        tokens = sorted(tokens for size, tokens in chosen if size == rung)
        every = [tokens for size, tokens in among if size == rung]
        if tokens:
            budgets = ", ".join(map(short_count, tokens))
            some = "" if len(tokens) == len(every) else f" ({budgets} tokens)"
            texts.append(rung_label(rung) + some)
    return ", ".join(texts)


def _needed_lines(
    reported: Sequence[Cell], missing: Sequence[Cell], pair: tuple[str, str]
) -> Iterator[str]:
    """Yield which further cells a loss difference and an exponent difference need."""
    remaining = [cell for cell in missing if cell.state != "diverged"]
    for name, reasons in (
        ("a loss difference with its interval", _level_reasons(pair)),
        ("a difference of exponents", _exponent_reasons(pair)),
    ):
        if not reasons(reported):
            continue
        if never := reasons([*reported, *remaining]):
            yield f"All cells of the study do not suffice for {name}: {never[0]}."
            return
        needed = needed_cells(reported, remaining, reasons)
        if len(needed) > MAX_LISTED:
            yield f"Needed for {name}: the next {len(needed)} cells in the order of the study."
        else:
            which = ", ".join(f"{cell.family} {_size_and_tokens(cell)}" for cell in needed)
            yield f"Needed for {name}, beside the finished cells: {which}."


def _size_and_tokens(cell: Cell) -> str:
    seed = f", seed {cell.spec.config.seed}" if cell.is_replicate else ""
    return f"{rung_label(cell.rung)} ({short_count(cell.spec.tokens)} tokens{seed})"


def needed_cells(
    reported: Sequence[Cell], remaining: Sequence[Cell], reasons: Reasons
) -> list[Cell]:
    """Return remaining cells that allow an estimate together with the reported ones; all of them do.

    They are the first ones in the order in which the study runs, if few without those that the estimate does not need.
    """
    added: list[Cell] = []
    for job in jobs_of(remaining):
        added += job.cells
        if not reasons([*reported, *added]):
            break
    if len(added) > MAX_LISTED:
        return added
    for cell in list(reversed(added)):
        others = [other for other in added if other is not cell]
        if not reasons([*reported, *others]):
            added = others
    return added


def _level_reasons(pair: tuple[str, str]) -> Reasons:
    from analysis.block.blocks import arrange
    from analysis.block.model import level_reasons

    def reasons(cells: Sequence[Cell]) -> list[str]:
        blocks = arrange(design_of(cells).columns(), deep=pair[0], wide=pair[1])
        if not blocks.is_matched:
            return [
                f"{pair[0]} and {pair[1]} have no size and token budget in common, or their FLOPs per token differ"
            ]
        return level_reasons(blocks)

    return reasons


def _exponent_reasons(pair: tuple[str, str]) -> Reasons:
    from analysis.block.blocks import arrange
    from analysis.block.model import exponent_reasons

    level = _level_reasons(pair)

    def reasons(cells: Sequence[Cell]) -> list[str]:
        blocks = arrange(design_of(cells).columns(), deep=pair[0], wide=pair[1])
        found = exponent_reasons(blocks) if len(blocks) else []  # cheap, so first
        return found or level(cells)

    return reasons
