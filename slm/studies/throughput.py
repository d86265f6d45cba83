"""How long a study will take: from throughput that was measured, or from a stated share of the peak."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slm.config.schema import Config
from slm.data.corpus.identity import MANIFEST
from slm.data.tokens.prepare import prepared_folder
from slm.errors import DataError
from slm.files import read_json, write_json
from slm.run.spec import RunSpec
from slm.studies.cells import Cell, Job
from slm.tracking.environment import available_cores

SECONDS_PER_HOUR = 3600
MANY_HOURS = 100  # of which fractions do not matter
PROBED = "throughput.json"


@dataclass(frozen=True)
class Throughput:
    """FLOP/s that shapes train at, by their FLOPs per token; None of what is not known."""

    measured: Mapping[int, float]
    assumed: float | None
    """FLOP/s where nothing was measured."""

    @property
    def source(self) -> str:
        if self.measured:
            return f"the measured throughput of {len(self.measured)} shapes"
        return f"the stated {self.assumed:.3g} FLOP/s of a device" if self.assumed else ""

    def flops_per_second(self, spec: RunSpec) -> float | None:
        """That of the shape itself, or between those of the nearest smaller and larger ones."""
        if not self.measured:
            return self.assumed
        f = spec.flops_per_token
        below = max((known for known in self.measured if known <= f), default=None)
        above = min((known for known in self.measured if known >= f), default=None)
        if below is None or above is None or below == above:
            return self.measured[below or above or f]
        share = math.log(f / below) / math.log(above / below)
        low, high = math.log(self.measured[below]), math.log(self.measured[above])
        return math.exp(low + share * (high - low))

    def seconds(self, job: Job) -> float | None:
        rate = self.flops_per_second(job.cells[0].spec)
        return None if rate is None else job.flops / rate


def known_throughput(cells: Sequence[Cell]) -> Throughput:
    """From finished cells and from a probe, both of this study's folder."""
    config = cells[0].spec.config
    measured: dict[int, float] = {}
    path = probe_path(config)
    if path.exists():
        probed = read_json(path)
        for cell in cells:
            tokens_per_second = probed.get(cell.spec.shape.label)
            if tokens_per_second is not None:
                f = cell.spec.flops_per_token
                measured[f] = tokens_per_second * f
    for cell in cells:
        result = cell.result
        if result is not None and result.status == "finished":
            measured[cell.spec.flops_per_token] = result.tokens_per_second * result.flops_per_token
    peak = config.plan.device_flops
    return Throughput(measured, None if peak is None else peak * config.plan.mfu)


def probe_path(config: Config) -> Path:
    return Path(config.runs_dir) / config.study.name / PROBED


def store_probe(config: Config, tokens_per_second: Mapping[str, float]) -> None:
    path = probe_path(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = read_json(path) if path.exists() else {}
    write_json(path, {**known, **tokens_per_second})


def jobs_at_once(config: Config) -> int:
    """As many as plan.devices says, else as the cores leave room for; of GPUs one."""
    if config.plan.devices is not None:
        return config.plan.devices
    cores = available_cores()
    on_cpu = config.trainer.accelerator == "cpu"
    return max(1, cores // (config.trainer.threads or cores)) if on_cpu else 1


def in_hours(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    hours = seconds / SECONDS_PER_HOUR
    return f"{hours:,.0f}" if hours >= MANY_HOURS else f"{hours:.3g}"


def wall_seconds(seconds: Sequence[float], at_once: int) -> float:
    """Of jobs that begin in this order, each where a place is free first."""
    places = [0.0] * at_once
    for job in seconds:
        places[places.index(min(places))] += job
    return max(places)


def train_tokens_of(config: Config) -> int | None:
    """Tokens of the training text; None if it is not prepared yet, or a task that never ends."""
    if config.data.source == "khop":
        return None
    try:
        path = prepared_folder(config) / MANIFEST
    except DataError:
        return None
    return int(read_json(path)["splits"]["train"]["tokens"]) if path.exists() else None
