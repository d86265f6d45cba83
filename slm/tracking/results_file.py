"""Results file of a study: one JSON line for each finished cell.

The file is small enough to commit. With it, a study can be continued in a fresh clone or on another machine,
and analysed without its run directories.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from slm.errors import DataError
from slm.files import write_text
from slm.tracking.result import RunResult, result_from


def read_results(path: Path) -> dict[str, RunResult]:
    """Read results by run id; a missing file has none.

    Raises:
        DataError: naming the line that cannot be read (`result_from`).
    """
    if not path.exists():
        return {}
    found: dict[str, RunResult] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            result = result_from(json.loads(line))
        except (json.JSONDecodeError, DataError) as error:
            raise DataError(
                f"{path}, line {number}: not a readable result: {error}; remove the line (a sweep then trains "
                "its run again)"
            ) from None
        found[result.run_id] = result
    return found


def write_results(path: Path, results: Mapping[str, RunResult]) -> None:
    """Write results sorted by run id, so that a new version of the file differs only in the added lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(_lines(results[run_id] for run_id in sorted(results))))


def _lines(results: Iterable[RunResult]) -> Iterable[str]:
    for result in results:
        yield json.dumps(asdict(result), allow_nan=False) + "\n"
