"""Reading of files that a user may have damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from slm.errors import DataError, RunError
from slm.files import read_object


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "the file is empty"),
        ("{", "not valid JSON: Expecting property name"),
        ("[1]", "no JSON object"),
        ('{"a": 1}', "no a and b"),
    ],
)
def test_unreadable_object_is_named_with_the_reason_and_the_fix(
    content: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "data.json"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        read_object(path, "delete it", ["a", "b"])
    assert str(caught.value).startswith(f"{path}: not readable ({reason}")
    assert str(caught.value).endswith("); delete it")
    with pytest.raises(RunError):
        read_object(path, "delete it", ["a", "b"], RunError)
    path.write_text('{"a": 1, "b": null}')
    assert read_object(path, "delete it", ["a", "b"]) == {"a": 1, "b": None}
