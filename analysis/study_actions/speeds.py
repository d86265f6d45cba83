"""Measured speeds of a study: where its speed.json is, and the expected latency ratios of its families."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from slm.architecture.decoding import bytes_read_per_token
from slm.architecture.flops import flop_equivalent_params
from slm.architecture.shapes import ModelShape
from slm.config.hydra import CONF_DIR
from slm.config.schema import Config
from slm.errors import DataError
from slm.formatting import count
from slm.studies.cells import Cell, RungKey, contrast_of
from slm.tracking.speeds import FILE_NAME

if TYPE_CHECKING:
    from analysis.compare.measured_speeds import MeasuredShape, Setting, Settings

MAX_FAMILIES = 3  # of which the plan lists all pairs; of more, the contrast only
Pairs = list[tuple[ModelShape, ModelShape]]


def speed_file(config: Config) -> Path | None:
    """Return the file of measured speeds: speed.file, or speed.json in the study's folder or beside study.results.

    Raises:
        DataError: if speed.file does not exist.
    """
    if config.speed.file is not None:
        path = Path(config.speed.file)
        if not path.is_file():
            raise DataError(
                f"speed.file={path}: no such file; remove it, or measure the file with "
                f"{speed_command(config)}"
            )
        return path
    folders = [Path(config.runs_dir) / config.study.name]
    if config.study.results is not None:
        folders.append(Path(config.study.results).parent)
    return next((path for folder in folders if (path := folder / FILE_NAME).is_file()), None)


def speed_command(config: Config) -> str:
    """Return the command that measures the speeds; the config does not have the file and the overrides of the study."""
    name = config.study.name
    if (CONF_DIR / "study" / f"{name}.yaml").is_file():
        return f"python -m slm speed study={name} (and the other overrides of this study, if any)"
    return f"python -m slm speed study=FILE study.name={name} (FILE and the other overrides as for this study)"


def latency_lines(cells: Sequence[Cell]) -> list[str]:
    """Return the latency ratio of each pair of families at equal FLOPs: measured, else bounds from the shapes.

    Raises:
        DataError: if the file of measured speeds is not readable.
    """
    config = cells[0].spec.config
    if config.study.analysis != "families":
        return []
    pairs = {names: pairs for names in _family_pairs(cells) if (pairs := _pairs(cells, names))}
    path = speed_file(config)
    if path is None:
        return list(_bounds(pairs, config))
    return list(_measured(pairs, path, cells))


def _family_pairs(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """Return pairs of families, the one with the smaller mean aspect ratio first; the contrast comes first."""
    contrast = contrast_of(cells)
    aspects: dict[str, list[float]] = {}
    for cell in cells:
        aspects.setdefault(cell.family, []).append(math.log(cell.spec.shape.aspect_ratio))
    if not 2 < len(aspects) <= MAX_FAMILIES:
        return [contrast] if contrast[0] != contrast[1] else []
    names = sorted(aspects, key=lambda name: sum(aspects[name]) / len(aspects[name]))
    others = [pair for pair in combinations(names, 2) if set(pair) != set(contrast)]
    return [contrast, *others]


def _pairs(cells: Sequence[Cell], names: tuple[str, str]) -> Pairs:
    """Return the two shapes of each rung that both families have."""
    shapes: dict[RungKey, dict[str, ModelShape]] = {}
    for cell in cells:
        shapes.setdefault(cell.rung, {}).setdefault(cell.family, cell.spec.shape)
    return [(s[names[0]], s[names[1]]) for s in shapes.values() if set(names) <= set(s)]


def _bounds(pairs: Mapping[tuple[str, str], Pairs], config: Config) -> Iterator[str]:
    """Yield the ratios if decoding is limited by memory bandwidth, and if it is limited by kernel launches."""
    speed = config.speed
    tokens = speed.prompt_tokens + speed.new_tokens // 2  # mean length of the cache

    def read(shape: ModelShape) -> int:
        return bytes_read_per_token(
            shape, tokens=tokens, batch_size=speed.batch_size, dtype=speed.dtype
        )

    for (deep, wide), shapes in pairs.items():
        by_bytes = _mean([read(a) / read(b) for a, b in shapes])
        by_layers = _mean([a.depth / b.depth for a, b in shapes])
        yield (
            f"At equal FLOPs {deep} is expected to take between {by_bytes:.2f} (memory-bound: bytes read per token) and "
            f"{by_layers:.2f} (launch-bound: layers) times as long as {wide} per generated token; measure it with "
            f"{speed_command(config)}"
        )


def _measured(
    pairs: Mapping[tuple[str, str], Pairs], path: Path, cells: Sequence[Cell]
) -> Iterator[str]:
    """Yield the geometric mean of the measured ratios over the rungs per setting, and how far to trust the times."""
    from analysis.compare.measured_speeds import load_settings  # late: imports pandas

    settings = load_settings(path)
    chosen = _settings_to_print(settings, cells[0].spec.config)
    for setting in chosen:
        found = ", ".join(_ratios(pairs, settings[setting], setting.token))
        found = found or "no pair of shapes of this study is measured"
        yield f"Measured {setting.describe()} at equal FLOPs: {found}"
        yield from _notes(settings[setting], setting.describe(), cells)
    if others := len(settings) - len(chosen):
        yield f"{path} has {count(others, 'other setting')}; the report compares in all of them"


def _settings_to_print(settings: Settings, config: Config) -> list[Setting]:
    """Return the decode settings of the config section `speed`, else the first one, and training on the same devices."""
    speed = config.speed
    wanted = speed.dtype, speed.batch_size, speed.prompt_tokens, speed.new_tokens
    decoding = [one for one in settings if one.is_decoding]
    matching = [
        one
        for one in decoding
        if (one.dtype, one.batch_size, one.prompt_tokens, one.new_tokens) == wanted
    ]
    chosen = matching or decoding[:1]
    devices = {one.device for one in chosen}
    training = [one for one in settings if not one.is_decoding]
    return [*chosen, *(one for one in training if one.device in devices or not chosen)]


def _ratios(
    pairs: Mapping[tuple[str, str], Pairs], measured: Mapping[str, MeasuredShape], token: str
) -> Iterator[str]:
    """Yield the measured ratio of each pair of families that has one."""
    from analysis.compare.measured_speeds import range_text
    from slm.architecture.shapes import shape_key

    for (deep, wide), shapes in pairs.items():
        times = [[measured.get(shape_key(shape.as_dict())) for shape in pair] for pair in shapes]
        known = [a.seconds / b.seconds for a, b in times if a is not None and b is not None]
        if known:
            yield (
                f"{deep} takes {_mean(known):.2f} times as long as {wide} per {token} ({range_text(known)})"
            )


def _notes(
    measured: Mapping[str, MeasuredShape], where: str, cells: Sequence[Cell]
) -> Iterator[str]:
    """Yield notes on shapes of the study measured in one round, and on times that fall with N."""
    from analysis.compare.measured_speeds import falling_note, falling_spans
    from slm.architecture.shapes import shape_key

    times: dict[str, dict[str, tuple[float, float]]] = {}
    single_rounds = set()
    for cell in cells:
        key = shape_key(cell.spec.shape.as_dict())
        if (one := measured.get(key)) is None:
            continue
        n = flop_equivalent_params(cell.spec.flops_per_token)
        times.setdefault(cell.family, {})[key] = (n, one.seconds)
        if one.rounds < 2:
            single_rounds.add(key)
    if single_rounds:
        shapes = count(len(single_rounds), "shape")
        yield f"Note: {where}: {shapes} measured in one round, so the noise of these times is unknown"
    spans = {family: falling_spans(each.values()) for family, each in times.items()}
    if fall := falling_note(spans):
        yield f"Note: {where} {fall}"


def _mean(ratios: Sequence[float]) -> float:
    """Return the geometric mean."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))
