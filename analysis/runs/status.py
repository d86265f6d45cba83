"""Drop the rows of a user's table whose columns say that the run has not finished."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

import pandas as pd

from analysis.formatting import count
from analysis.runs.comparable import count_dropped
from analysis.runs.validate import FLAGS, is_missing, stripped, without_empty_word

FINISHED = ("finished", "completed", "complete", "done", "success", "succeeded", "ok", "passed")
UNFINISHED = (
    "crashed", "failed", "killed", "running", "pending", "queued", "preempted", "preempting", "interrupted",
    "diverged", "aborted", "canceled", "cancelled", "error", "timeout", "oom", "out_of_memory", "node_fail", "boot_fail",
    "suspended", "stopped", "deadline", "requeued", "completing",
    "checkpoint",  # in models.csv of `slm evaluate`: a model that is no run
)  # fmt: skip
TERMINATED = "terminated"  # finished in Ray Tune, killed elsewhere
SLURM_FINISHED = "cd"
SLURM_CODES = {
    SLURM_FINISHED: "completed", "bf": "boot_fail", "ca": "cancelled", "cg": "completing", "dl": "deadline", "f": "failed",
    "nf": "node_fail", "oom": "out_of_memory", "pd": "pending", "pr": "preempted", "r": "running", "rq": "requeued",
    "s": "suspended", "st": "stopped", "to": "timeout",
}  # fmt: skip
NO_STATUS = "no status"
STATUS_NAMES = ("status", "state")
WORD_ENDS = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])")
FLAG_PREFIX = re.compile(r"^(is|has|was)_?")
EXIT_CODES = ("exitcode", "exit_code")
EXIT_CODE = re.compile(r"-?\d+(\.0)?(:\d+)?")  # Slurm writes code:signal


def with_status(
    table: pd.DataFrame, columns: Mapping[str, str], dropped: Counter[str]
) -> tuple[pd.DataFrame, list[str]]:
    """Return the runs that every status column counts as finished, and notes on these columns.

    Status columns are words, such as `State` of W&B or `JobState` of a cluster, yes/no columns, such as `finished` or
    `diverged`, and exit codes. If a column of words is mapped, the other ones are not used.
    """
    found, notes = _statuses(table, columns)
    flags, flag_notes = _outcomes(table, set(columns))
    notes += flag_notes
    found |= flags
    if not found:
        return table, notes
    names = list(found)
    words = found[names[0]]
    disagree = pd.Series(False, index=table.index)
    for name in names[1:]:
        other = found[name]
        is_empty = words == NO_STATUS
        if not (~is_empty & (other != NO_STATUS)).any():  # of tables with different columns
            words = words.where(~is_empty, other)
            continue
        disagree |= words.isin(FINISHED) != other.isin(FINISHED)
        words = words.where(~words.isin(FINISHED), other)
    if disagree.any():
        shown = ", ".join(columns.get(name, name) for name in names)
        notes.append(
            f"columns {shown} disagree on {count(int(disagree.sum()), 'run')}: only runs that are finished by all of them "
            "are used"
        )
    finished = words.isin(FINISHED)
    for word, runs in words[~finished].value_counts().items():
        count_dropped(dropped, f"not finished ({word})", int(runs))
    return table[finished], notes


def _statuses(
    table: pd.DataFrame, columns: Mapping[str, str]
) -> tuple[dict[str, pd.Series], list[str]]:
    """Return the columns of statuses as words in lower case, and notes.

    They are `status`, columns named status or state, and columns whose name ends with this word, such as run_state, if most
    of their words are known.
    """
    names = [str(name) for name in table if WORD_ENDS.split(str(name))[-1].lower() in STATUS_NAMES]
    names.sort(key=lambda name: (name != "status", name.lower() not in STATUS_NAMES))
    is_mapped = "status" in columns
    found: dict[str, pd.Series] = {}
    notes = []
    for name in names[:1] if is_mapped else names:
        words = _status_words(table[name])
        known = words.isin([*FINISHED, *UNFINISHED, TERMINATED])
        shown = columns.get("status", name) if name == "status" else name
        is_named = name.lower() in STATUS_NAMES
        # OK is also a state of the USA.
        is_usual = known[words != NO_STATUS].mean() > 0.5
        if not is_mapped and not (known.any() if is_named and not found else is_usual):
            if is_named and not words.eq(NO_STATUS).all():
                example = words[words != NO_STATUS].iloc[0]
                notes.append(f"column {shown} is not used: {example!r} is no status of a run")
            continue
        found[name] = words
        if not is_named:
            notes.append(f"column {shown} is used as the status of the runs")
        unknown = sorted(set(words[~known & (words != NO_STATUS)]))
        if unknown:
            notes.append(
                f"column {shown}: {', '.join(unknown)} {'is no known status' if len(unknown) == 1 else 'are no known statuses'}; "
                f"only {', '.join(FINISHED)} count as finished"
            )
        elif not words.isin(FINISHED).any():
            if words.eq(TERMINATED).any():
                found[name] = words.replace(TERMINATED, FINISHED[0])
                notes.append(f"column {shown}: {TERMINATED} counts as finished, as in Ray Tune")
            else:
                notes.append(f"column {shown}: only {', '.join(FINISHED)} count as finished")
    return found, notes


def _status_words(column: pd.Series) -> pd.Series:
    """Return the words of a status in lower case; the codes of Slurm become its words if CD (completed) is among them.

    Without it, CA may be California.
    """
    cells = column.map(stripped).map(without_empty_word)
    words = cells.map(lambda cell: NO_STATUS if is_missing(cell) else str(cell).lower())
    return words.replace(SLURM_CODES) if words.eq(SLURM_FINISHED).any() else words


def _outcomes(table: pd.DataFrame, mapped: set[str]) -> tuple[dict[str, pd.Series], list[str]]:
    """Return the yes/no columns, such as `finished`, and exit codes as statuses, and notes.

    An empty cell of `finished` or of the exit code is no status; one of `diverged` means no.
    """
    found: dict[str, pd.Series] = {}
    notes = []
    for name in (str(each) for each in table if each not in mapped):
        key = FLAG_PREFIX.sub("", "_".join(WORD_ENDS.split(name)).lower())
        is_code = key in EXIT_CODES
        if not is_code and key not in (*FINISHED, *UNFINISHED):
            continue
        values = table[name].map(stripped)
        is_empty = values.map(is_missing).to_numpy(dtype=bool)
        texts = values.map(lambda value: str(value).lower())
        if is_code:
            valid = texts.map(lambda text: EXIT_CODE.fullmatch(text) is not None)
            good = texts.str.replace(".0", "", regex=False).isin(["0", "0:0"])
        else:
            flags = texts.str.removesuffix(".0").map(FLAGS)
            valid = flags.notna()
            good = flags == (key in FINISHED)
        if is_empty.all():
            continue
        if not valid[~is_empty].all():
            example = values[~is_empty & ~valid].iloc[0]
            rule = "an exit code" if is_code else "yes or no"
            notes.append(f"column {name} is not used: {example!r} is not {rule}")
            continue
        words = (f"{name}=" + texts).where(~good, FINISHED[0])
        found[name] = words.mask(is_empty, FINISHED[0] if key in UNFINISHED else NO_STATUS)
        notes.append(f"column {name} is used as the status of the runs")
    return found, notes
