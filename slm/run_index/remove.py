"""`python -m slm runs rm`: remove runs and studies, never one in use and nothing that slm did not write."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from slm.architecture.memory import format_bytes
from slm.errors import DataError, InUse, SlmError
from slm.formatting import DAY, count
from slm.run_index.scan import (
    Run,
    find_run,
    folders,
    freed_bytes,
    is_run_directory,
    read_run,
    read_studies,
    run_directories,
)
from slm.tracking.lease import Lease
from slm.tracking.run_dir import SUPERSEDED, RunDirectory
from slm.tracking.trunk import FOLDER as TRUNKS
from slm.tracking.trunk import Trunk

TRUNK_ID = re.compile(r".+-L[\dx]+-d\d+-s\d+-[0-9a-f]{8}")
STALE = {"interrupted", "failed", "planned"}
# Files of a study that are not those of a run.
STUDY_FILES = (
    "report", "curves.html", "dashboard", "lr_tuning.json", "throughput.json", ".slurm", TRUNKS, SUPERSEDED,
)  # fmt: skip


class NotConfirmed(SlmError):
    """The question could not be asked, or what to remove was not given."""

    exit_code = 2


@dataclass
class Selection:
    """What to remove. `studies` are removed as a whole; their runs are among `runs` too."""

    runs: dict[Path, Run] = field(default_factory=dict)
    superseded: dict[Path, None] = field(default_factory=dict)
    studies: dict[Path, None] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        for path in self.studies:
            runs = [run for run in self.runs if run.parent == path]
            yield _line([*runs, *_study_files(path)], path, f"study of {count(len(runs), 'run')}")
        for path, run in self.runs.items():
            if path.parent not in self.studies:
                yield _line([path], path, f"{run.state}: {run.name}")
        for path in self._other_superseded():
            yield _line([path], path, "superseded")

    def freed_bytes(self) -> int:
        studies = [path for study in self.studies for path in _study_files(study)]
        return freed_bytes(*self.runs, *self._other_superseded(), *studies)

    def _other_superseded(self) -> list[Path]:
        """Return the superseded runs of studies that are not removed as a whole."""
        return [path for path in self.superseded if path.parent.parent not in self.studies]


def _study_files(study: Path) -> list[Path]:
    """Return the files and folders of a study apart from its runs."""
    paths = [study / name for name in STUDY_FILES]
    return [path for path in paths if path.exists() and not path.is_symlink()]


def _line(removed: Sequence[Path], path: Path, note: str) -> str:
    return f"frees {format_bytes(freed_bytes(*removed)):>8}  {path}  ({note})"


def remove(
    target: Sequence[str],
    runs_dir: Path,
    days: int | None,
    *,
    superseded: bool,
    stale: bool,
    yes: bool,
) -> None:
    """Print what would be removed, ask, and remove it.

    Raises:
        NotConfirmed: if nothing is named, or there is no terminal to answer at.
        InUse: if a named run is in use.
        DataError: if a target is neither a run nor a study.
    """
    if superseded or stale:
        places = [_existing(text, runs_dir) for text in target] or [runs_dir]
        selected = _select_old(places, days, superseded=superseded, stale=stale)
    elif target:
        selected = _select([_existing(text, runs_dir) for text in target])
    else:
        raise NotConfirmed("nothing is named: give a study, a run, --superseded or --stale")
    lines = list(selected.lines())
    if not lines:
        print("nothing to remove")
        return
    print("\n".join(lines))
    size = format_bytes(selected.freed_bytes())
    one = "this study" if selected.studies else "this run"
    what = one if len(lines) == 1 else f"these {len(lines)} folders"
    if not yes and not _is_confirmed(f"Remove {what}, freeing {size}? [y/N] "):
        print("nothing was removed")
        return
    for line in _remove(selected):
        print(line)
    print(f"removed; {size} freed")


def _is_confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise NotConfirmed(
            "nothing was removed: there is no terminal to answer at; add --yes to remove these"
        )
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _existing(text: str, runs_dir: Path) -> Path:
    """Return the folder of a target: a path, the name of a study, or a run as for `find_run`."""
    if not text.strip():
        raise NotConfirmed("a target is empty: give a study or a run")
    named = next((path for path in (Path(text), runs_dir / text) if path.is_dir()), None)
    # Without . and .., but with links, which resolve() would follow.
    path = Path(os.path.abspath(named or find_run(text, runs_dir)))  # noqa: PTH100
    for link in (path, path.parent):
        if link.is_symlink():
            raise DataError(
                f"{link} is a symbolic link to {link.resolve()}; give that folder instead"
            )
    return path


def _select(paths: Sequence[Path]) -> Selection:
    selected = Selection()
    for path in paths:
        if is_run_directory(path):
            if path.parent.name == SUPERSEDED:
                selected.superseded[path] = None
            else:
                selected.runs[path] = read_run(path)
            continue
        runs, superseded = _own(run_directories(path)), _own(folders(path / SUPERSEDED))
        if not (runs or superseded or _trunks(path)):
            raise DataError(f"{path}: neither a run directory nor a study of slm; name one")
        selected.studies[path] = None
        selected.runs |= {run: read_run(run) for run in runs}
        selected.superseded |= dict.fromkeys(superseded)
    for path in selected.runs:
        _check_unused(RunDirectory(path).lease)
    for study in selected.studies:
        for lease in _trunk_leases(study):
            _check_unused(lease)
    return selected


def _select_old(
    places: Sequence[Path], days: int | None, *, superseded: bool, stale: bool
) -> Selection:
    """Select superseded and stale runs below folders that did not change for some days."""
    latest = time.time() - (days or 0) * DAY
    selected = Selection()
    for study in read_studies(places):
        if study.path.is_symlink():
            continue
        if superseded:
            paths = [path for path in _own(study.superseded) if read_run(path).updated <= latest]
            selected.superseded |= dict.fromkeys(paths)
        if stale:
            runs = [run for run in study.runs if _is_stale(run) and run.updated <= latest]
            selected.runs |= {run.path: run for run in runs if _own([run.path])}
    return selected


def _is_stale(run: Run) -> bool:
    has_result = (run.path / "result.json").exists()
    return run.state in STALE and not has_result and not RunDirectory(run.path).is_in_use()


def _own(paths: Sequence[Path]) -> list[Path]:
    """Return the folders that are run directories and not behind a symbolic link."""
    return [path for path in paths if is_run_directory(path) and not _is_linked(path)]


def _is_linked(path: Path) -> bool:
    return path.is_symlink() or path.parent.is_symlink()


def _trunks(study: Path) -> list[Path]:
    trunks = folders(study / TRUNKS)
    return [path for path in trunks if TRUNK_ID.fullmatch(path.name) and not _is_linked(path)]


def _trunk_leases(study: Path) -> list[Lease]:
    """Return the leases of trunks that have a lock file; a job takes one before it stores the first checkpoint."""
    return [Lease(lock) for lock in (study / TRUNKS).glob("*.lock")]


def _check_unused(lease: Lease) -> None:
    owner = lease.owner()
    if owner is not None:
        raise InUse(f"{lease.path.parent} is in use by {owner}; nothing was removed")


def _remove(selected: Selection) -> Iterator[str]:
    """Remove the selection, and yield what was kept.

    A run is moved to .superseded while its lease is held, so that a process that starts the run gets a new directory.
    """
    for path in selected.runs:
        run = RunDirectory(path)
        shutil.rmtree(run.move_aside(run.lease.take()))
    for path in selected.superseded:
        shutil.rmtree(path)
    for study in selected.studies:
        yield from _remove_rest(study)


def _remove_rest(study: Path) -> Iterator[str]:
    """Remove trunks, reports and the folder of a study without runs; yield a line about files of others."""
    for trunk in _trunks(study):
        held = Trunk(trunk).lease.take()
        shutil.rmtree(trunk)
        held.release()
    for lease in _trunk_leases(study):
        lease.take().release()  # which deletes the lock file
    for path in _study_files(study):
        if path.name in (SUPERSEDED, TRUNKS):
            with suppress(OSError):  # not empty
                path.rmdir()
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    kept = ", ".join(sorted(path.name for path in study.iterdir()))
    if kept:
        yield f"kept in {study}: {kept}"
    else:
        study.rmdir()
