"""Time estimates for a study, from measured throughput or from an assumed MFU of a device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slm.architecture.shapes import count_parameters
from slm.config.schema import Config
from slm.data.corpus.identity import MANIFEST
from slm.data.tokens.prepare import prepared_folder
from slm.errors import DataError
from slm.files import read_object, write_json
from slm.run.mfu import Mfu, mfu_at
from slm.run.spec import RunSpec
from slm.studies.cells import Cell, Job
from slm.tracking.environment import available_cores

SECONDS_PER_HOUR = 3600
MANY_HOURS = 100  # from here on printed without decimals
PROBE_FILE = "throughput.json"
DELETE_PROBE = "delete it, and measure again with plan.probe=true"


@dataclass(frozen=True)
class Throughput:
    """Training throughput in FLOP/s; `measured` maps the FLOPs per token of a shape to its FLOP/s."""

    measured: Mapping[int, float]
    device_flops: float | None = None
    """Peak FLOP/s of a device. With `mfu` it gives the throughput if no shape was measured; None if unknown."""
    mfu: Mfu = 1.0

    @property
    def source(self) -> str:
        if self.measured:
            return f"measured throughput of {len(self.measured)} shapes"
        if self.device_flops is None:
            return ""
        shares = sorted(self.mfu.values() if isinstance(self.mfu, Mapping) else [self.mfu])
        used = " to ".join(f"{share:.0%}" for share in dict.fromkeys([shares[0], shares[-1]]))
        return f"assumed MFU of {used} of {self.device_flops:.3g} FLOP/s (estimated until measured)"

    @property
    def is_assumed(self) -> bool:
        return not self.measured and self.device_flops is not None

    def flops_per_second(self, spec: RunSpec) -> float | None:
        """Return the FLOP/s of a shape, interpolated (log-log) between measured shapes; None if unknown."""
        if not self.measured:
            params = count_parameters(spec.shape).params_total
            return (
                None if self.device_flops is None else self.device_flops * mfu_at(self.mfu, params)
            )
        f = spec.flops_per_token
        below = max((flops for flops in self.measured if flops <= f), default=None)
        above = min((flops for flops in self.measured if flops >= f), default=None)
        if below is None or above is None or below == above:
            return self.measured[below or above or f]
        fraction = math.log(f / below) / math.log(above / below)
        low, high = math.log(self.measured[below]), math.log(self.measured[above])
        return math.exp(low + fraction * (high - low))

    def seconds(self, job: Job) -> float | None:
        """Estimate the seconds of a job on one device; None if the throughput is unknown."""
        rate = self.flops_per_second(job.cells[0].spec)
        return None if rate is None else job.flops / rate


def load_throughput(cells: Sequence[Cell]) -> Throughput:
    """Load the throughput of finished cells and of `plan.probe` from the study's folder."""
    config = cells[0].spec.config
    measured: dict[int, float] = {}
    path = probe_path(config)
    if path.exists():
        probe = read_object(path, DELETE_PROBE)
        for cell in cells:
            tokens_per_second = probe.get(cell.spec.shape.label)
            if tokens_per_second is not None:
                f = cell.spec.flops_per_token
                measured[f] = tokens_per_second * f
    for cell in cells:
        result = cell.result
        if result is not None and result.status == "finished":
            measured[cell.spec.flops_per_token] = result.tokens_per_second * result.flops_per_token
    return Throughput(measured, config.plan.device_flops, config.plan.mfu)


def probe_path(config: Config) -> Path:
    return Path(config.runs_dir) / config.study.name / PROBE_FILE


def store_probe(config: Config, tokens_per_second: Mapping[str, float]) -> None:
    """Add tokens/s by shape label to the study's probe file."""
    path = probe_path(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = read_object(path, DELETE_PROBE) if path.exists() else {}
    write_json(path, {**stored, **tokens_per_second})


def count_concurrent_jobs(config: Config) -> int:
    """Return plan.devices, else the number of jobs that the CPU cores allow, or 1 on GPUs."""
    if config.plan.devices is not None:
        return config.plan.devices
    cores = available_cores()
    on_cpu = config.trainer.accelerator == "cpu"
    return max(1, cores // (config.trainer.threads or cores)) if on_cpu else 1


def format_hours(seconds: float | None) -> str:
    """Format a duration in hours with three digits; "?" if unknown."""
    if seconds is None:
        return "?"
    hours = seconds / SECONDS_PER_HOUR
    return f"{hours:,.0f}" if hours >= MANY_HOURS else f"{hours:.3g}"


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
