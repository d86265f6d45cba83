"""What the pages share: reading a public table, the table of claims, and results.json."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from analysis.report.write import markdown_table
from slm.errors import DataError
from slm.summary import Rows

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


@dataclass(frozen=True)
class Claim:
    """A published statement beside what its data identify.

    Attributes:
        claim: the statement, in our words.
        published: the value or conclusion that was published.
        identified: what the data identify; "nothing" if they do not.
        interval: 95% confidence interval or range of accepted values, with its unit.
        status: OK, WEAK, UNIDENTIFIED, REFUSED, or a verdict of the analysis.
        settled_by: the design that would settle the question.
    """

    claim: str
    published: str
    identified: str
    interval: str
    status: str
    settled_by: str


def claims_table(claims: Sequence[Claim]) -> str:
    """Return the claims as a Markdown table, one row per claim."""
    rows = [
        {
            "claim": claim.claim,
            "published": claim.published,
            "what the data identify": claim.identified,
            "95% interval": claim.interval,
            "status": claim.status,
            "settled by": claim.settled_by,
        }
        for claim in claims
    ]
    return "\n".join(markdown_table(rows))


def show(rows: Rows) -> Any:
    """Return rows as a Markdown table that a page displays."""
    from IPython.display import Markdown

    return Markdown("\n".join(markdown_table(rows)))


def find_table(variable: str, in_clone: str, in_test_data: str) -> Path:
    """Return the path of a public table in the user's clone of its repository, or in $SLM_TEST_DATA.

    Args:
        variable: environment variable with the path of the clone.
        in_clone: path of the table in the clone.
        in_test_data: path of the table in $SLM_TEST_DATA (default ../shared/data).

    Raises:
        DataError: if neither file exists.
    """
    clone = os.environ.get(variable)
    data = Path(os.environ.get("SLM_TEST_DATA", ROOT / "../shared/data"))
    candidates = [*([Path(clone) / in_clone] if clone else []), data / in_test_data]
    for path in candidates:
        if path.exists():
            return path
    tried = ", ".join(str(path) for path in candidates)
    raise DataError(f"{tried}: no such file; set {variable} to a clone of the table's repository")


def write_results(name: str, results: dict[str, Any], claims: Sequence[Claim]) -> Path:
    """Write NAME/results.json: the numbers of a page, to 6 digits so that they hardly depend on the machine, and its claims."""
    path = HERE / name / "results.json"
    path.parent.mkdir(exist_ok=True)
    content = {**_rounded(results), "claims": [asdict(claim) for claim in claims]}
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
