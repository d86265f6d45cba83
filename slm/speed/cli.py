"""`python -m slm speed`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from json import dumps
from pathlib import Path
from statistics import median

from slm.architecture.memory import format_bytes
from slm.architecture.shapes import ModelShape, count_parameters
from slm.config.hydra import compose_study
from slm.config.schema import Config
from slm.console import Column, FittedTable, console
from slm.formatting import count, short_count
from slm.run.spec import RunSpec, resolve
from slm.speed.measure import distinct_shapes, measure_rounds, needed_tokens, prepare_device
from slm.studies.cells import Cell
from slm.studies.expand import cells_of
from slm.tracking.speeds import (
    FILE_NAME,
    ShapeSpeed,
    merge_speeds,
    read_speeds,
    write_speeds,
)

Families = Mapping[ModelShape, Sequence[str]]


def speed(overrides: Sequence[str], *, json: bool) -> None:
    """Measure every distinct shape of a study with random weights, print a table, and write speed.json.

    Without a study it measures the shape of the config.
    """
    specs, families = shapes_of(overrides)
    config = specs[0].config
    device = prepare_device(config)
    path = speed_path(config)
    stored = read_speeds(path) if path.exists() else []
    rounds = config.speed.rounds
    _report(f"{count(len(specs), 'shape')} on {device.name}, {count(rounds, 'round')}")
    measured: list[ShapeSpeed] = []
    for number, measured in enumerate(measure_rounds(specs, device), start=1):
        write_speeds(path, merge_speeds(stored, measured))
        _report(f"round {number} of {rounds} saved in {path}")
    if json:
        print(dumps([asdict(each) for each in measured], indent=2))
    else:
        console().print(speed_table(measured, config, families))


def speed_path(config: Config) -> Path:
    """Return `speed.file`, else speed.json in the folder of the study."""
    if config.speed.file is not None:
        return Path(config.speed.file)
    return Path(config.runs_dir) / config.study.name / FILE_NAME


def shapes_of(overrides: Sequence[str]) -> tuple[list[RunSpec], Families]:
    """Return one run of each distinct shape, and the names of the families that have it."""
    config, composer = compose_study(overrides)
    if not (config.study.sizes or config.study.models):
        spec = resolve(config)
        return [spec], {spec.shape: [config.family.name]}
    cells = cells_of(config, composer)
    specs = list(distinct_shapes([cell.spec for cell in cells]).values())
    return specs, {spec.shape: _families_with(spec.shape, cells) for spec in specs}


def speed_table(speeds: Sequence[ShapeSpeed], config: Config, families: Families) -> FittedTable:
    """Return the table of speeds by family and size: medians over the rounds."""
    order = list(dict.fromkeys(name for names in families.values() for name in names))

    def family_and_size(speed: ShapeSpeed) -> tuple[int, int]:
        shape = ModelShape(**speed.shape)
        return order.index(families[shape][0]), count_parameters(shape).params_total

    speeds = sorted(speeds, key=family_and_size)
    shapes = [ModelShape(**speed.shape) for speed in speeds]
    inference = [speed.inference for speed in speeds]
    decode = [f"{each.decode_tokens_per_second:,.1f}" if each else "-" for each in inference]
    prefill = [f"{each.prefill_tokens_per_second:,.0f}" if each else "-" for each in inference]
    first = [
        f"{1e3 * each.time_to_first_token_seconds:,.1f}" if each else "-" for each in inference
    ]
    memory = [
        format_bytes(each.peak_memory_bytes) if each and each.peak_memory_bytes else "-"
        for each in inference
    ]
    trained = [each.train_tokens_per_second for each in speeds]
    columns = [
        Column("family", [", ".join(families[shape]) for shape in shapes], is_left=True),
        Column("shape", [shape.label for shape in shapes], is_left=True),
        Column("params", [short_count(count_parameters(s).params_total) for s in shapes], rank=2),
        Column("decode\ntokens/s", decode),
        Column("prefill\ntokens/s", prefill, rank=1),
        Column("first\ntoken ms", first, rank=3),
        Column("peak\nmemory", memory, rank=3),
    ]
    if any(trained):
        rates = [f"{median(rates):,.0f}" if rates else "-" for rates in trained]
        columns.append(Column("training\ntokens/s", rates, rank=1))
    title = (
        f"Speed on {speeds[0].device}, {config.speed.dtype}, batch size {config.speed.batch_size}"
    )
    return FittedTable(columns, title, note=_note(config, shapes))


def _note(config: Config, shapes: Sequence[ModelShape]) -> str:
    settings = config.speed
    note = (
        f"Random weights, greedy, prompt of {settings.prompt_tokens} tokens, {settings.new_tokens} new tokens; "
        f"{'1 round' if settings.rounds == 1 else f'medians of {settings.rounds} rounds'}."
    )
    short = sorted({s.seq_len for s in shapes if s.seq_len < needed_tokens(config)})
    if short:
        lengths = ", ".join(map(str, short))
        note += (
            f" seq_len={lengths} is shorter than prompt and new tokens: measured with a longer RoPE table, which "
            "changes no parameter."
        )
    return note


def _families_with(shape: ModelShape, cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.family for cell in cells if cell.spec.shape == shape))


def _report(text: str) -> None:
    print(text, file=sys.stderr)
