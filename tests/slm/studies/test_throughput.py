"""Hours of a study: from measured throughput, or from what is stated."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from slm.run.spec import RunSpec
from slm.studies.cells import Cell, Job
from slm.studies.throughput import (
    Throughput,
    in_hours,
    jobs_at_once,
    known_throughput,
    store_probe,
    wall_seconds,
)


def test_jobs_go_where_a_place_is_free_first() -> None:
    assert wall_seconds([1, 1, 5, 1, 1], 1) == 9
    assert wall_seconds([1, 1, 5, 1, 1], 2) == 6
    assert wall_seconds([3], 4) == 3


def test_an_unknown_shape_lies_between_its_neighbours(tiny_spec: Callable[..., RunSpec]) -> None:
    spec = tiny_spec()
    f = spec.flops_per_token
    assert Throughput({f: 1e9}, None).flops_per_second(spec) == 1e9
    between = Throughput({f // 4: 1e9, f * 4: 4e9}, None).flops_per_second(spec)
    assert between == pytest.approx(2e9, rel=1e-3)
    assert Throughput({f * 4: 4e9}, None).flops_per_second(spec) == 4e9
    assert Throughput({}, 3e9).flops_per_second(spec) == 3e9
    assert Throughput({}, None).flops_per_second(spec) is None
    job = Job((Cell(spec, "tiny", 1),))
    assert Throughput({f: 1e9}, None).seconds(job) == pytest.approx(spec.flops / 1e9)


def test_a_probe_is_kept_with_the_study_and_a_finished_run_corrects_it(
    tiny_spec: Callable[..., RunSpec],
) -> None:
    spec = tiny_spec()
    cell = Cell(spec, "tiny", 1)
    assert known_throughput([cell]).measured == {}
    store_probe(spec.config, {spec.shape.label: 500.0})
    store_probe(spec.config, {"another": 1.0})
    f = spec.flops_per_token
    assert known_throughput([cell]).measured == {f: 500.0 * f}


def test_a_stated_share_of_the_peak(tiny_spec: Callable[..., RunSpec]) -> None:
    spec = tiny_spec(plan={"device_flops": 1e12, "mfu": 0.25, "devices": 8})
    known = known_throughput([Cell(spec, "tiny", 1)])
    assert known.flops_per_second(spec) == 2.5e11 and "stated 2.5e+11" in known.source
    assert jobs_at_once(spec.config) == 8


def test_hours_are_short_to_read() -> None:
    assert [in_hours(s) for s in (None, 36.0, 3600 * 12.345, 3600 * 4680.2)] == [
        "?", "0.01", "12.3", "4,680",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_probe_trains_for_real_and_leaves_nothing(tiny_spec: Callable[..., RunSpec]) -> None:
    from pathlib import Path

    from slm.training.probe import measure_tokens_per_second

    spec = tiny_spec()
    rate = measure_tokens_per_second(spec, 1.0)
    assert 100 < rate < 1e7
    assert not Path(spec.config.runs_dir).exists()
