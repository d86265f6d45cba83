"""Find and read the runs of a folder, also damaged ones and those that a process writes."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import yaml

from slm.errors import DataError, RunError, nearest_name
from slm.formatting import short_count
from slm.run.display_name import (
    SHAPE_KEYS,
    Settings,
    default_settings,
    describe_settings,
    distinctions,
    flatten,
    is_recipe,
    join_name,
)
from slm.tracking.result import RunResult
from slm.tracking.run_dir import SUPERSEDED, RunDirectory
from slm.tracking.trunk import FOLDER as TRUNKS

RUN_ID = re.compile(
    r"(?P<family>.+)-(?P<shape>L[\dx]+-d\d+)-(?P<mtok>[\d.e+]+)Mtok-s(?P<seed>\d+)-(?P<hash>[0-9a-f]{8})"
)
ATTEMPT = re.compile(r"-\d+$")  # at the end of the name of a superseded run
MAX_DEPTH = 3  # of study folders below the given one
SECTION = re.compile(r"^(?=\w)", re.MULTILINE)  # of config.yaml begins here
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MAX_LISTED = 5  # runs in the message about an ambiguous name
Files = dict[tuple[int, int], int]
"""Size in bytes of each file; the key identifies files with several links."""


@dataclass(frozen=True)
class Run:
    """A run directory: its config, state and result, as far as they can be read."""

    path: Path
    state: str
    settings: Settings
    result: RunResult | None
    problem: str
    """Why it failed, or what is damaged; empty if nothing is."""
    is_damaged: bool
    updated: float
    """Time of the last change, in seconds since 1970."""
    files: Files
    differs: tuple[str, ...] = ()
    """What differs from the recipe of the study, in words."""

    @property
    def run_id(self) -> str:
        return self.path.name

    @cached_property
    def _of_name(self) -> dict[str, str]:
        found = RUN_ID.match(self.run_id)
        return found.groupdict() if found else {}

    @property
    def short_id(self) -> str:
        return self._of_name.get("hash", self.run_id)

    @property
    def family(self) -> str:
        return str(self.settings.get("family.name") or self._of_name.get("family", "?"))

    @property
    def size(self) -> int | None:
        size = self.settings.get("size", self.result and self.result.size)
        return size if isinstance(size, int) else None

    @property
    def size_label(self) -> str:
        if self.size is not None:
            return short_count(self.size)
        return str(self.settings.get("model.preset") or self._of_name.get("shape", "?"))

    @property
    def tokens(self) -> float | None:
        """Token budget: of the result of a finished run, else as rounded in the run id."""
        if self.result is not None and (self.state == "finished" or not self._of_name):
            return self.result.tokens
        return float(self._of_name["mtok"]) * 1e6 if self._of_name else None

    @property
    def seed(self) -> int | None:
        seed = self.settings.get("seed", self._of_name.get("seed"))
        return int(seed) if str(seed).isdecimal() else None

    @property
    def loss(self) -> float | None:
        return None if self.result is None else self.result.val_loss_nats_per_token

    @property
    def flops(self) -> int | None:
        return None if self.result is None else self.result.flops

    @property
    def seconds(self) -> float | None:
        """Training time."""
        return None if self.result is None else self.result.wall_seconds

    @property
    def disk_bytes(self) -> int:
        return sum(self.files.values())

    @property
    def name(self) -> str:
        """Display name; the run id if the config is not readable."""
        if not self.settings or self.tokens is None or self.seed is None:
            return self.run_id
        others = dict.fromkeys([*distinctions(self.settings), *self.differs])
        return join_name(self.family, self.size_label, self.tokens, self.seed, [*others])


@dataclass(frozen=True)
class Study:
    """A folder of runs, with the runs that were set aside and the cached trunks."""

    path: Path
    runs: tuple[Run, ...]
    superseded: tuple[Path, ...]
    superseded_files: Files
    trunks: int
    trunk_files: Files

    @property
    def disk_bytes(self) -> int:
        """Disk use of all runs and trunks; files with several links are counted once."""
        total = self.superseded_files | self.trunk_files
        for run in self.runs:
            total |= run.files
        return sum(total.values())

    @cached_property
    def best(self) -> Run | None:
        """The run with the lowest loss on the most common validation set."""
        done = [
            (run.result.val_fingerprint, run.loss, run)
            for run in self.runs
            if run.result is not None and run.loss is not None
        ]
        if not done:
            return None
        common = Counter(fingerprint for fingerprint, _, _ in done).most_common(1)[0][0]
        return min((d for d in done if d[0] == common), key=lambda d: d[1])[2]

    @property
    def validation_sets(self) -> int:
        return len({run.result.val_fingerprint for run in self.runs if run.result is not None})


def read_studies(folders: Sequence[Path]) -> list[Study]:
    """Read the runs below folders: folders of studies, study folders or run directories.

    Raises:
        DataError: if a folder does not exist.
    """
    found: dict[Path, dict[Path, None]] = {}
    whole = set()
    for folder in folders:
        _check_exists(folder)
        if is_run_directory(folder):
            found.setdefault(folder.parent, {})[folder] = None
            continue
        for study in study_folders(folder):
            found.setdefault(study, {}).update(dict.fromkeys(run_directories(study)))
            whole.add(study)
    return [read_study(study, runs, is_whole=study in whole) for study, runs in found.items()]


def _check_exists(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.exists():
        raise DataError(f"{folder}: a file; give a folder of runs")
    siblings = [path.name for path in folders(folder.parent)] if folder.parent.is_dir() else []
    near = nearest_name(folder.name, siblings)
    fix = f"did you mean {folder.parent / near}?" if near else "train some runs first"
    raise DataError(f"{folder}: no such folder; {fix}")


def is_run_directory(path: Path) -> bool:
    """Return whether a folder was made by a run, also if it is incomplete or was set aside.

    Its name is a run id, or it has both config.yaml and status.json. A copy with another name and no status.json is
    none: it can be loaded (`slm.evaluation.load.has_run_config`), but is not listed and never removed.
    """
    name = ATTEMPT.sub("", path.name) if path.parent.name == SUPERSEDED else path.name
    if not path.is_dir():
        return False
    files = (path / "config.yaml", path / "status.json")
    return bool(RUN_ID.fullmatch(name)) or all(file.is_file() for file in files)


def run_directories(study: Path) -> list[Path]:
    return [path for path in folders(study) if path.name[0] != "." and is_run_directory(path)]


def study_folders(folder: Path, depth: int = MAX_DEPTH) -> Iterator[Path]:
    """Yield the study folders in a folder, or the folder itself."""
    if run_directories(folder) or any((folder / name).is_dir() for name in (SUPERSEDED, TRUNKS)):
        yield folder
    elif depth:
        for path in folders(folder):
            if path.name[0] != ".":
                yield from study_folders(path, depth - 1)


def read_study(folder: Path, runs: Iterable[Path], *, is_whole: bool = True) -> Study:
    """Read runs of a study; the superseded runs and trunks are those of all its runs."""
    superseded, trunks = (
        folders(folder / name) if is_whole else [] for name in (SUPERSEDED, TRUNKS)
    )
    return Study(
        folder,
        tuple(_with_differences([read_run(path) for path in runs])),
        tuple(superseded),
        files_below(*superseded),
        len(trunks),
        files_below(*trunks),
    )


def folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []


def read_run(path: Path) -> Run:
    """Read a run directory; what cannot be read becomes the `problem` of the run."""
    run, problems = RunDirectory(path), []
    settings: Settings = {}
    try:
        settings = _read_settings(path / "config.yaml")
    except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError) as error:
        problems.append(f"config.yaml {_reason(error)}")
    result = None
    try:
        result = run.result()
    except (RunError, OSError, UnicodeError) as error:
        problems.append(f"result.json {_reason(error)}")
    try:
        state = str(run.state())
    except OSError as error:
        state = "planned"
        problems.append(f"status.json {_reason(error)}")
    if state == "finished" and result is None and not problems:
        problems.append("result.json is missing")
    problem = "; ".join(problems) or (run.failure() if state == "failed" else "")
    return Run(
        path,
        state,
        settings,
        result,
        problem,
        bool(problems),
        _last_change(path),
        files_below(path),
    )


def _read_settings(path: Path) -> Settings:
    """Return the values of a config.yaml by dotted key.

    A section is parsed once for all runs that have it: parsing takes most of the time of a long list.
    """
    text = path.read_text("utf-8")
    tree: dict[str, Any] = {}
    for section in SECTION.split(text):
        tree |= _parse(section) or {}
    settings = flatten(tree)
    hash(tuple(settings.values()))  # a TypeError if a value is none of a config
    if "family.name" not in settings:
        raise ValueError(f"{path}: not a config of a run")
    return settings


@lru_cache(maxsize=4096)
def _parse(section: str) -> Any:
    return yaml.load(section, YAML_LOADER)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "is missing"
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror})"
    return "is damaged"


def _last_change(path: Path) -> float:
    times = [0.0]
    for name in ("", "status.json", "metrics.jsonl", "result.json"):
        with suppress(OSError):  # missing, or removed meanwhile
            times.append((path / name).stat().st_mtime)
    return max(times)


def files_below(*folders: Path) -> Files:
    """Return the sizes of all files below folders, without following symbolic links."""
    return {(each.st_dev, each.st_ino): each.st_size for each in _statuses(folders)}


def freed_bytes(*folders: Path) -> int:
    """Return the size of the files that have all their links below folders, which must not overlap."""
    statuses = list(_statuses(folders))
    found = {(each.st_dev, each.st_ino): each for each in statuses}
    links = Counter((each.st_dev, each.st_ino) for each in statuses)
    return sum(each.st_size for key, each in found.items() if links[key] >= each.st_nlink)


def _statuses(folders: Iterable[Path]) -> Iterator[os.stat_result]:
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in names:
                with suppress(OSError):  # removed meanwhile
                    yield Path(parent, name).lstat()


def _with_differences(runs: Sequence[Run]) -> Iterator[Run]:
    """Compare each run with the recipe: the most common value of each key that can change the result.

    The keys of an explicit shape are compared within a family and size.
    """
    values: dict[tuple[str, ...], list[Any]] = defaultdict(list)
    for run in runs:
        for key, value in run.settings.items():
            if (group := _group(run, key)) is not None:
                values[group].append(value)
    recipe = {group: _most_common(seen, group[0]) for group, seen in values.items()}
    for run in runs:
        differing = {
            key: value
            for key, value in run.settings.items()
            if (group := _group(run, key)) is not None and value != recipe[group]
        }
        yield replace(run, differs=tuple(describe_settings(differing)))


def _most_common(values: Sequence[Any], key: str) -> Any:
    """Return the most common value of a key; of equally common ones the default, else the first."""
    counts = Counter(values)
    default = default_settings().get(key)
    return max(counts, key=lambda value: (counts[value], value == default))


def _group(run: Run, key: str) -> tuple[str, ...] | None:
    """Return which runs must have an equal value of a key; None if none."""
    if is_recipe(key):
        return (key,)
    if key in SHAPE_KEYS or key in ("family.aspect_ratio", "family.draw"):
        return (key, run.family, run.size_label)
    return None


def find_run(text: str, folder: Path) -> Path:
    """Return the run directory of a path, or of the start of a run's id, display name or hash.

    Raises:
        DataError: if no run, or more than one, is meant.
    """
    if is_run_directory(Path(text)):
        return Path(text)
    runs = [run for study in read_studies([folder]) for run in study.runs]
    found = [
        run
        for run in runs
        if any(name.startswith(text) for name in (run.run_id, run.short_id, run.name))
    ]
    exact = [run for run in found if text in (run.run_id, run.short_id, run.name)]
    found = exact or found
    if len(found) == 1:
        return found[0].path
    if found:
        listed = "".join(f"\n  {run.run_id}: {run.name}" for run in found[:MAX_LISTED])
        raise DataError(f"{text}: {len(found)} runs of {folder} begin like this; give more{listed}")
    names = [name for run in runs for name in (run.run_id, run.short_id)]
    near = nearest_name(text, names)
    fix = f"did you mean {near}?" if near else f"`python -m slm runs {folder}` lists the runs"
    raise DataError(f"{text}: no run of {folder} begins like this; {fix}")
