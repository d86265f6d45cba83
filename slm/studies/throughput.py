"""Time estimates for a study, from measured throughput or from an assumed MFU of a device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slm.architecture.shapes import ModelShape, count_parameters
from slm.config.schema import Config
from slm.data.corpus.identity import MANIFEST
from slm.data.tokens.prepare import prepared_folder
from slm.errors import DataError, SlmError
from slm.files import read_object, write_json
from slm.formatting import count, format_duration, scientific
from slm.rounding import ROUNDING_TOLERANCE
from slm.run.mfu import Mfu, mfu_at
from slm.run.spec import RunSpec
from slm.studies.cells import Cell, Job
from slm.studies.left_out import left_out
from slm.tracking.concurrency import jobs_on_cores, visible_gpus
from slm.tracking.result import RunResult
from slm.tracking.results_file import read_results

SECONDS_PER_HOUR = 3600
MANY_HOURS = 100  # from here on printed without decimals
PROBE_FILE = "throughput.json"
SAME_SPEED = ("precision", "threads", "devices", "num_nodes", "accelerator")  # keys of the trainer
DELETE_PROBE = "delete it, and measure again with plan.probe=true"


Key = tuple[int, int, int]  # depth, tokens per batch, FLOPs per token


@dataclass(frozen=True)
class Throughput:
    """Training throughput of one device; `measured` are the tokens/s of measured shapes at their global batch.

    Of other shapes and batches the seconds per step are c1 * FLOPs + c2 + c3 * depth + c4 * depth * tokens, fitted to
    the measured ones by relative least squares, with one coefficient per measurement at most.
    """

    measured: Mapping[Key, float]
    device_flops: float | None = None
    """Peak FLOP/s of a device. With `mfu` it gives the throughput if no shape was measured; None if unknown."""
    mfu: Mfu = 1.0

    @property
    def source(self) -> str:
        if self.measured:
            return f"measured throughput of {count(len(self.measured), 'shape')}"
        if self.device_flops is None:
            return ""
        shares = sorted(self.mfu.values() if isinstance(self.mfu, Mapping) else [self.mfu])
        used = " to ".join(f"{share:.0%}" for share in dict.fromkeys([shares[0], shares[-1]]))
        return f"assumed MFU of {used} of {scientific(self.device_flops)} FLOP/s (estimated until measured)"

    @property
    def is_assumed(self) -> bool:
        return not self.measured and self.device_flops is not None

    def flops_per_second(self, spec: RunSpec) -> float | None:
        """Return the FLOP/s of one device for a shape at its global batch; None if unknown."""
        if not self.measured:
            params = count_parameters(spec.shape).params_total
            return (
                None if self.device_flops is None else self.device_flops * mfu_at(self.mfu, params)
            )
        key = _key(spec)
        if key in self.measured:
            return self.measured[key] * spec.flops_per_token
        coefficients = self._step_time
        seconds = float(_step_terms(key)[: len(coefficients)] @ coefficients)
        return spec.batch_tokens * spec.flops_per_token / seconds

    @cached_property
    def _step_time(self) -> NDArray[np.float64]:
        """Coefficients of the seconds per step; none is negative."""
        seconds = np.array([key[1] / rate for key, rate in self.measured.items()])
        terms = np.array([_step_terms(key) for key in self.measured])
        found = np.zeros(min(terms.shape))
        used = np.arange(len(found))
        while True:
            scaled = terms[:, used] / seconds[:, None]
            fit = np.linalg.lstsq(scaled, np.ones(len(seconds)), rcond=ROUNDING_TOLERANCE)[0]
            if (fit >= 0).all():
                found[used] = fit
                return found
            used = used[fit >= 0]

    def seconds(self, job: Job) -> float | None:
        """Estimate the device time of a job, the sum over the devices of its run; None if the throughput is unknown."""
        rate = self.flops_per_second(job.cells[0].spec)
        return None if rate is None else job.flops / rate


def _key(spec: RunSpec) -> Key:
    return spec.shape.depth, spec.batch_tokens, spec.flops_per_token


def _step_terms(key: Key) -> NDArray[np.float64]:
    depth, tokens, flops = (float(value) for value in key)
    return np.array([tokens * flops, 1.0, depth, depth * tokens])


def load_throughput(cells: Sequence[Cell]) -> Throughput:
    """Load the throughput of `study.results`, of finished cells, of earlier runs and of `plan.probe` from the folder."""
    config = cells[0].spec.config
    rates: dict[Key, list[float]] = defaultdict(list)
    own = {cell.spec.run_id: cell.result for cell in cells if cell.recorded is None}
    for result in {**own, **_committed_results(cells)}.values():
        if result is not None and result.status == "finished":
            depth = ModelShape(**result.shape).depth
            key = (depth, result.batch_tokens, result.flops_per_token)
            rates[key].append(result.tokens_per_second / config.trainer.processes)
    missing = {_key(cell.spec) for cell in cells} - rates.keys()
    for key, tokens_per_second in _earlier_rates(cells, missing):
        rates[key].append(tokens_per_second / config.trainer.processes)
    # The mean time of a token: the load of the machine differs between runs.
    measured = {key: len(each) / sum(1 / rate for rate in each) for key, each in rates.items()}
    path = probe_path(config)
    if path.exists():
        probe = read_object(path, DELETE_PROBE)
        for cell in cells:
            rate = probe.get(probe_key(cell.spec))
            if rate is not None:
                measured.setdefault(_key(cell.spec), rate)
    return Throughput(measured, config.plan.device_flops, config.plan.mfu)


def _committed_results(cells: Sequence[Cell]) -> dict[str, RunResult]:
    """Read `study.results` without results of another precision; plan.device_flops replaces all of them."""
    config = cells[0].spec.config
    if config.study.results is None or config.plan.device_flops is not None:
        return {}
    precisions = {cell.spec.config.trainer.precision for cell in cells}
    results = read_results(Path(config.study.results))
    return {id_: result for id_, result in results.items() if result.precision in precisions}


def _earlier_rates(cells: Sequence[Cell], missing: Collection[Key]) -> Iterator[tuple[Key, float]]:
    """Yield tokens/s of runs that an edit of the study left out, for shapes and batches without another measurement."""
    trainer = cells[0].spec.config.trainer
    for run, result in left_out(cells) if missing else ():
        key = (ModelShape(**result.shape).depth, result.batch_tokens, result.flops_per_token)
        if key not in missing:
            continue
        with suppress(SlmError, KeyError):  # a damaged config, or a corpus that is gone
            other = run.spec().config.trainer
            if all(getattr(other, name) == getattr(trainer, name) for name in SAME_SPEED):
                yield key, result.tokens_per_second


def probe_path(config: Config) -> Path:
    return Path(config.runs_dir) / config.study.name / PROBE_FILE


def probe_key(spec: RunSpec) -> str:
    """Return the key of a shape's tokens/s in the probe file: everything that the speed depends on."""
    depth, batch_tokens, flops_per_token = _key(spec)
    settings = [f"{name}={getattr(spec.config.trainer, name)}" for name in SAME_SPEED]
    shape = f"depth={depth} batch_tokens={batch_tokens} flops_per_token={flops_per_token}"
    return " ".join([shape, *settings])


def store_probe(spec: RunSpec, tokens_per_second: float) -> None:
    """Add the tokens/s of one device for a shape at its global batch to the study's probe file."""
    path = probe_path(spec.config)
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = read_object(path, DELETE_PROBE) if path.exists() else {}
    write_json(path, {**stored, probe_key(spec): tokens_per_second})


def count_concurrent_jobs(config: Config) -> int:
    """Return plan.devices, else the number of jobs that the CPU cores allow, or 1 on GPUs."""
    if config.plan.devices is not None:
        return config.plan.devices
    trainer = config.trainer
    on_cpu = trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not visible_gpus())
    return jobs_on_cores(trainer.threads, trainer.devices) if on_cpu else 1


def format_device_time(seconds: float) -> str:
    """Format the time that a study takes on one device; from one hour on in device-hours, the unit of its cost."""
    if seconds < SECONDS_PER_HOUR:
        return f"{format_duration(seconds)} of device time"
    return (
        f"{seconds / SECONDS_PER_HOUR:,.{seconds < MANY_HOURS * SECONDS_PER_HOUR:d}f} device-hours"
    )


def wall_seconds(seconds: Sequence[float], concurrent: int) -> float:
    """Return the wall time of jobs that start in this order, `concurrent` at a time."""
    workers = [0.0] * concurrent
    for job in seconds:
        workers[workers.index(min(workers))] += job
    return max(workers)


def load_train_tokens(config: Config) -> int | None:
    """Read the number of training tokens; None if the data is not prepared yet, or is generated (khop)."""
    if config.data.source == "khop":
        return None
    try:
        path = prepared_folder(config) / MANIFEST
    except DataError:
        return None
    if not path.exists():
        return None
    manifest = read_object(path, f"delete {path.parent} and prepare the data again", ["splits"])
    return int(manifest["splits"]["train"]["tokens"])
