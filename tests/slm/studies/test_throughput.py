"""Time estimates of a study, from measured or assumed throughput."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from slm.run.spec import RunSpec
from slm.studies.cells import Cell, Job
from slm.studies.throughput import (
    Throughput,
    count_concurrent_jobs,
    format_hours,
    load_throughput,
    store_probe,
    wall_seconds,
)


def test_wall_time_of_jobs_on_several_workers() -> None:
    assert wall_seconds([1, 1, 5, 1, 1], 1) == 9
    assert wall_seconds([1, 1, 5, 1, 1], 2) == 6
    assert wall_seconds([3], 4) == 3


def test_throughput_is_interpolated_between_measured_shapes(
    tiny_spec: Callable[..., RunSpec],
) -> None:
    spec = tiny_spec()
    f = spec.flops_per_token
    assert Throughput({f: 1e9}, None).flops_per_second(spec) == 1e9
    interpolated = Throughput({f // 4: 1e9, f * 4: 4e9}, None).flops_per_second(spec)
    assert interpolated == pytest.approx(2e9, rel=1e-3)
    assert Throughput({f * 4: 4e9}, None).flops_per_second(spec) == 4e9
    assert Throughput({}, 3e9).flops_per_second(spec) == 3e9
    assert Throughput({}, None).flops_per_second(spec) is None
    job = Job((Cell(spec, "tiny", 1),))
    assert Throughput({f: 1e9}, None).seconds(job) == pytest.approx(spec.flops / 1e9)


def test_probe_is_stored_in_the_study_folder(
    tiny_spec: Callable[..., RunSpec],
) -> None:
    spec = tiny_spec()
    cell = Cell(spec, "tiny", 1)
    assert load_throughput([cell]).measured == {}
    store_probe(spec.config, {spec.shape.label: 500.0})
    store_probe(spec.config, {"another": 1.0})
    f = spec.flops_per_token
    assert load_throughput([cell]).measured == {f: 500.0 * f}


def test_stated_mfu_gives_the_throughput(tiny_spec: Callable[..., RunSpec]) -> None:
    spec = tiny_spec(plan={"device_flops": 1e12, "mfu": 0.25, "devices": 8})
    throughput = load_throughput([Cell(spec, "tiny", 1)])
    assert throughput.flops_per_second(spec) == 2.5e11
    assert "assumed throughput of 2.5e+11 FLOP/s" in throughput.source
    assert count_concurrent_jobs(spec.config) == 8


def test_format_hours() -> None:
    seconds = (None, 36.0, 3600 * 12.345, 3600 * 4680.2)
    assert [format_hours(each) for each in seconds] == ["?", "0.01", "12.3", "4,680"]


@pytest.mark.slow
def test_probe_measures_throughput_and_writes_no_files(tiny_spec: Callable[..., RunSpec]) -> None:
    from pathlib import Path

    from slm.training.throughput_probe import measure_tokens_per_second

    spec = tiny_spec()
    rate = measure_tokens_per_second(spec, 1.0)
    assert 100 < rate < 1e7
    assert not Path(spec.config.runs_dir).exists()
