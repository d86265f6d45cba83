"""The latency ratio of families in `action=plan`: bounds from the shapes, or measured ratios."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from analysis.study_actions.plan import show_plan
from analysis.study_actions.speeds import latency_lines, speed_command, speed_file
from slm.config.hydra import (
    CONF_DIR,
    Composer,
    convert_overrides,
    load_composed_config,
    register_schema,
)
from slm.errors import DataError
from slm.studies.cells import Cell
from slm.studies.expand import cells_of
from slm.tracking.speeds import FILE_NAME, InferenceSpeed, ShapeSpeed, write_speeds


@pytest.fixture(scope="module", autouse=True)
def composed() -> Iterator[None]:
    register_schema()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        yield


def cells(*overrides: str) -> list[Cell]:
    def compose_study(further: list[str]) -> DictConfig:
        return compose("sweep", convert_overrides(["study=demo", *overrides, *further]))

    return cells_of(load_composed_config(compose_study([])), Composer(compose_study))


def write_times(
    path: Path,
    planned: list[Cell],
    factor: float,
    *,
    new_tokens: tuple[int, ...] = (8,),
    rounds: int = 2,
    exponent: float = 0.5,
) -> None:
    """Write decode times of a family: `factor` for deep_thin, 1 for the other, times size**exponent."""
    shapes = {(cell.family, cell.rung): cell.spec.shape for cell in planned}
    speeds = []
    for ((family, rung), shape), new in product(shapes.items(), new_tokens):
        seconds = 1e-6 * int(rung) ** exponent * (factor if family == "deep_thin" else 1.0)
        one = InferenceSpeed(
            batch_size=1,
            prompt_tokens=4,
            new_tokens=new,
            dtype="fp32",
            prefill_seconds=(seconds,),
            decode_seconds_per_token=(seconds,) * rounds,
            peak_memory_bytes=None,
        )
        speeds.append(
            ShapeSpeed(
                shape=shape.as_dict(),
                device="a CPU",
                inference=one,
                train_tokens_per_second=(),
                train_batch_tokens=None,
                torch="2",
            )
        )
    write_speeds(path, speeds)


def test_without_speeds_the_plan_gives_bounds_and_the_command(tmp_path: Path) -> None:
    planned = cells(f"runs_dir={tmp_path}")
    (line,) = latency_lines(planned)
    found = re.fullmatch(
        r"At equal FLOPs deep_thin is expected to take between ([\d.]+) \(memory-bound: bytes read per token\) and "
        r"([\d.]+) \(launch-bound: layers\) times as long as wide_shallow per generated token; measure it with (.*)",
        line,
    )
    assert found is not None and found[3].startswith(
        "python -m slm speed study=demo (and the other"
    )
    renamed = cells(f"runs_dir={tmp_path}", "study.name=mine")[0].spec.config
    assert speed_command(renamed).startswith("python -m slm speed study=FILE study.name=mine (FILE")
    depth = {(cell.family, cell.rung): cell.spec.shape.depth for cell in planned}
    ratios = [
        depth["deep_thin", rung] / depth["wide_shallow", rung] for rung in {c.rung for c in planned}
    ]
    assert float(found[2]) == pytest.approx(prod(ratios) ** (1 / len(ratios)), abs=0.006)
    # at equal FLOPs both read nearly the same bytes; the KV cache of deep is larger
    assert 1 < float(found[1]) < 1.3


def test_measured_ratio_is_from_the_file_in_the_folder_of_the_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = cells(f"runs_dir={tmp_path}")
    write_times(tmp_path / "demo" / FILE_NAME, planned, 1.5)
    assert speed_file(planned[0].spec.config) == tmp_path / "demo" / FILE_NAME
    (line,) = latency_lines(planned)
    assert line == (
        "Measured decode latency (a CPU, fp32, batch size 1, prompt of 4 tokens, 8 new tokens) at equal FLOPs: "
        "deep_thin takes 1.50 times as long as wide_shallow per generated token (range over 4 sizes: 1.50 to 1.50)"
    )
    show_plan(planned)
    assert line in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("configured", "printed"), [("8", "8"), ("16", "16"), ("5", "8")])
def test_of_several_settings_the_plan_prints_that_of_the_config(
    configured: str, printed: str, tmp_path: Path
) -> None:
    planned = cells(
        f"runs_dir={tmp_path}", "speed.prompt_tokens=4", f"speed.new_tokens={configured}"
    )
    path = tmp_path / "demo" / FILE_NAME
    write_times(path, planned, 1.5, new_tokens=(8, 16))
    line, others = latency_lines(planned)
    assert f", {printed} new tokens)" in line
    assert others == f"{path} has 1 other setting; the report compares in all of them"


def test_unreliable_times_get_notes(tmp_path: Path) -> None:
    planned = cells(f"runs_dir={tmp_path}")
    write_times(tmp_path / "demo" / FILE_NAME, planned, 1.5, rounds=1, exponent=-0.5)
    _, rounds, falls = latency_lines(planned)
    assert rounds.endswith("8 shapes measured in one round, so the noise of these times is unknown")
    assert " falls with N: " in falls
    assert "deep_thin from N = " in falls and "wide_shallow from N = " in falls


def test_speeds_of_other_shapes_are_no_ratio(tmp_path: Path) -> None:
    planned = cells(f"runs_dir={tmp_path}")
    others = [
        replace(cell, spec=replace(cell.spec, shape=replace(cell.spec.shape, vocab_size=7)))
        for cell in planned
    ]
    write_times(tmp_path / "mine.json", others, 1.5)
    given = cells(f"runs_dir={tmp_path}", f"speed.file={tmp_path / 'mine.json'}")
    assert latency_lines(given)[0].endswith("no pair of shapes of this study is measured")


def test_a_given_file_must_exist(tmp_path: Path) -> None:
    planned = cells(f"speed.file={tmp_path / 'none.json'}")
    with pytest.raises(DataError, match=r"none.json: no such file; remove it, or measure"):
        latency_lines(planned)


def test_studies_without_families_have_no_line() -> None:
    assert latency_lines(cells("study.analysis=lr_audit", "study.claim=none")) == []


def test_speeds_beside_the_committed_results_are_used(tmp_path: Path) -> None:
    committed = tmp_path / "committed"
    committed.mkdir()
    keys = (f"runs_dir={tmp_path}", f"study.results={committed}/results.jsonl")
    config = cells(*keys)[0].spec.config
    assert speed_file(config) is None
    (committed / FILE_NAME).touch()
    assert speed_file(config) == committed / FILE_NAME
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / FILE_NAME).touch()
    assert speed_file(config) == tmp_path / "demo" / FILE_NAME
