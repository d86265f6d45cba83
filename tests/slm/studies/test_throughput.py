"""Time estimates of a study, from measured or assumed throughput."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from hydra_plugins.slm_study._settings import LocalSettings
from hydra_plugins.slm_study.local import LocalLauncher
from slm.architecture.shapes import count_parameters
from slm.config.hydra import compose_config
from slm.config.schema import Config
from slm.formatting import format_duration
from slm.run.spec import RunSpec, resolve
from slm.studies.cells import Cell, Job
from slm.studies.plan_tables import format_time_estimate, mfu_warnings
from slm.studies.status import progress_of
from slm.studies.throughput import (
    Throughput,
    count_concurrent_jobs,
    format_device_time,
    load_throughput,
    probe_path,
    store_probe,
    wall_seconds,
)
from slm.tracking import concurrency
from slm.tracking.results_file import write_results
from slm.training import checkpoint
from slm.training.throughput_probe import measure_tokens_per_second, probe_config
from tests.benchmarks.watch import result_of


def test_wall_time_of_jobs_on_several_workers() -> None:
    assert wall_seconds([1, 1, 5, 1, 1], 1) == 9
    assert wall_seconds([1, 1, 5, 1, 1], 2) == 6
    assert wall_seconds([3], 4) == 3


def test_seconds_per_step_are_fitted_to_measured_shapes(tiny_spec: Callable[..., RunSpec]) -> None:
    spec = tiny_spec()
    f, batch, depth = spec.flops_per_token, spec.batch_tokens, spec.shape.depth
    exact = Throughput({(depth, batch, f): 1e6, (depth, 8 * batch, f): 4e6})
    assert exact.flops_per_second(spec) == 1e6 * f
    # One measurement: the same FLOP/s for every shape.
    assert Throughput({(depth, batch, 4 * f): 1e6}).flops_per_second(spec) == pytest.approx(4e6 * f)
    # Seconds per step = 1e-9 FLOPs + .01 + .002 depth + 1e-6 depth * tokens.
    measured = {
        (layers, tokens, flops): tokens / (1e-9 * tokens * flops + 0.01 + 0.002 * layers + 1e-6 * layers * tokens)
        for layers, tokens, flops in (
            (1, 64, 10**5), (9, 64, 10**5), (3, 256, 10**6), (20, 512, 10**5), (7, 1024, 10**7)
        )
    }  # fmt: skip
    seconds = 1e-9 * batch * f + 0.01 + 0.002 * depth + 1e-6 * depth * batch
    assert Throughput(measured).flops_per_second(spec) == pytest.approx(batch * f / seconds)
    assert Throughput({}, 6e9, 0.5).flops_per_second(spec) == 3e9
    assert Throughput({}).flops_per_second(spec) is None
    job = Job((Cell(spec, "tiny", 1),))
    assert Throughput({(depth, batch, f): 1e9 / f}).seconds(job) == pytest.approx(spec.flops / 1e9)


OTHER_SPEED: dict[str, dict[str, Any]] = {
    "batch": {"optimizer": {"global_batch_tokens": 512}},
    "d_ff": {"model": {"d_ff": 128}},
    "precision": {"trainer": {"precision": "bf16"}},
    "threads": {"trainer": {"threads": 2}},
    "accelerator": {"trainer": {"accelerator": "gpu"}},
}


@pytest.mark.parametrize("changes", OTHER_SPEED.values(), ids=OTHER_SPEED.keys())
def test_probe_holds_for_its_shape_batch_and_trainer(
    tiny_spec: Callable[..., RunSpec], changes: dict[str, Any]
) -> None:
    spec, other = tiny_spec(), tiny_spec(**changes)
    assert spec.shape.label == other.shape.label
    assert load_throughput([Cell(spec, "tiny", 1)]).measured == {}
    store_probe(other, 1.0)
    probe_path(spec.config).write_text(
        json.dumps({**json.loads(probe_path(spec.config).read_text()), spec.shape.label: 2.0})
    )  # with an entry as earlier versions wrote it
    store_probe(spec, 500.0)
    key = (spec.shape.depth, spec.batch_tokens, spec.flops_per_token)
    assert load_throughput([Cell(spec, "tiny", 1)]).measured == {key: 500.0}


def test_run_over_several_devices_has_device_time_and_wall_time(
    tiny_spec: Callable[..., RunSpec],
) -> None:
    """Measured on four devices, and assumed for one device: the same device time, a quarter of it as wall time."""
    trainer = {"strategy": "ddp", "devices": 2, "num_nodes": 2}
    spec = tiny_spec(trainer=trainer)
    cell = Cell(spec, "tiny", 1)
    cell.run.path.mkdir(parents=True)
    rate = 1e6 / spec.flops_per_token  # tokens/s of one device
    result = replace(result_of(cell), tokens_per_second=4 * rate)
    cell.run.write_result(result)
    measured = load_throughput([cell])
    plan = {"device_flops": 4e6, "mfu": 0.25}
    cell = Cell(tiny_spec(trainer=trainer, plan=plan, runs_dir="nowhere"), "tiny", 1)
    for throughput in (measured, load_throughput([cell])):
        device_seconds = throughput.seconds(Job((cell,)))
        assert device_seconds == pytest.approx(spec.flops / 1e6)
        assert progress_of(cell, throughput).remaining_seconds == pytest.approx(device_seconds / 4)
        wall = format_duration(device_seconds / 4)
        line = format_time_estimate([cell], throughput)
        assert f"{format_device_time(device_seconds)} at" in line and f"wall time {wall}" in line


@pytest.mark.parametrize(
    ("changes", "shapes"),
    [
        ({}, 1),
        ({"trainer": {"precision": "bf16"}}, 0),
        ({"plan": {"device_flops": 1e12}}, 0),
    ],
    ids=["same", "precision", "device_flops"],
)
def test_committed_results_are_of_the_same_precision_and_not_of_a_given_device(
    tiny_spec: Callable[..., RunSpec], tmp_path: Path, changes: dict[str, Any], shapes: int
) -> None:
    recorded = Cell(tiny_spec(), "tiny", 1)
    results = tmp_path / "results.jsonl"
    write_results(results, {recorded.spec.run_id: result_of(recorded)})
    spec = tiny_spec(study={"results": str(results)}, **changes)
    assert len(load_throughput([Cell(spec, "tiny", 1)]).measured) == shapes


def test_probe_is_one_process_that_may_repeat_the_corpus(
    tiny_spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    trainer = {"strategy": "ddp", "devices": 2, "num_nodes": 2}
    spec = tiny_spec(trainer=trainer, data={"max_epochs": 1e-6})
    assert measure_tokens_per_second(spec, 0.01) > 0
    short = resolve(probe_config(spec, 0.01, str(tmp_path)))
    assert short.config.trainer.processes == 1 and short.batch_tokens == spec.batch_tokens / 4


@pytest.mark.parametrize(
    ("trainer", "jobs"),
    [
        ({"accelerator": "cpu", "threads": 1}, 8),
        ({"accelerator": "cpu", "threads": 3}, 2),
        ({"accelerator": "cpu", "threads": None}, 1),
        ({"accelerator": "cpu", "threads": 2, "strategy": "ddp", "devices": 2}, 2),
        ({"accelerator": "auto", "threads": 1}, 8),
        ({"accelerator": "gpu", "threads": 1}, 1),
    ],
    ids=["threads_1", "threads_3", "all_cores", "devices_2", "auto", "gpu"],
)
def test_plan_has_the_number_of_jobs_of_the_local_launcher(
    tiny_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    trainer: dict[str, Any],
    jobs: int,
) -> None:
    monkeypatch.setattr(concurrency, "available_cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = tiny_config(trainer=trainer)
    assert count_concurrent_jobs(config) == jobs
    if trainer["accelerator"] != "gpu":
        launcher = LocalLauncher()
        launcher.settings = LocalSettings()
        launcher.config = OmegaConf.create({"trainer": asdict(config.trainer)})
        assert launcher._slots().qsize() == jobs


def test_probe_writes_no_checkpoint(
    tiny_spec: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of a model of 1B parameters has 12 GB."""
    monkeypatch.setattr(checkpoint, "_write", lambda *_: pytest.fail("a checkpoint is written"))
    assert measure_tokens_per_second(tiny_spec(), 0.01) > 0


def test_stated_mfu_gives_the_throughput(tiny_spec: Callable[..., RunSpec]) -> None:
    spec = tiny_spec(plan={"device_flops": 1e12, "mfu": 0.25, "devices": 8})
    throughput = load_throughput([Cell(spec, "tiny", 1)])
    assert throughput.flops_per_second(spec) == 2.5e11
    assert "assumed MFU of 25% of 1e12 FLOP/s (estimated until measured)" in throughput.source
    assert count_concurrent_jobs(spec.config) == 8


def test_mfu_table_gives_the_throughput_by_parameters(
    tiny_spec: Callable[..., RunSpec],
) -> None:
    params = count_parameters(tiny_spec().shape).params_total
    table = {params // 2: 0.1, 2 * params: 0.3}
    cell = Cell(tiny_spec(plan={"device_flops": 1e12, "mfu": table}), "tiny", 1)
    throughput = load_throughput([cell])
    assert throughput.flops_per_second(cell.spec) == pytest.approx(2e11, rel=1e-3)
    assert "assumed MFU of 10% to 30% of 1e12 FLOP/s" in throughput.source
    assert mfu_warnings([cell], throughput) == []
    small = load_throughput(
        [Cell(tiny_spec(plan={"device_flops": 1e12, "mfu": {"1b": 0.4}}), "tiny", 1)]
    )
    assert small.flops_per_second(cell.spec) == 4e11
    (warning,) = mfu_warnings([cell], small)
    assert f"1 of 1 shapes ({params:,} parameters) assume the MFU of the nearer end" in warning
    measured = Throughput({(1, 64, cell.spec.flops_per_token): 1e4}, 1e12, {10**9: 0.4})
    assert mfu_warnings([cell], measured) == []


def test_plan_h100_has_a_table_and_a_study_may_replace_it_by_a_number() -> None:
    sub1b = compose_config(["study=sub1b", "size=140m"]).plan
    assert isinstance(sub1b.mfu, dict) and min(sub1b.mfu) == 125_000_000
    small = compose_config(["study=small", "size=2m"]).plan
    assert small.mfu == 0.05 and small.device_flops == sub1b.device_flops == 989e12


def test_device_time_is_in_hours_from_one_hour_on() -> None:
    seconds = (36.0, 3600 * 12.345, 3600 * 4680.2)
    expected = ["36 s of device time", "12.3 device-hours", "4,680 device-hours"]
    assert [format_device_time(each) for each in seconds] == expected


@pytest.mark.slow
def test_probe_measures_throughput_and_writes_no_files(tiny_spec: Callable[..., RunSpec]) -> None:
    from pathlib import Path

    from slm.training.throughput_probe import measure_tokens_per_second

    spec = tiny_spec()
    rate = measure_tokens_per_second(spec, 1.0)
    assert 100 < rate < 1e7
    assert not Path(spec.config.runs_dir).exists()
