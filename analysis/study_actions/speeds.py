"""Measured speeds of a study: where its speed.json is, and the expected latency ratios of its families."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from slm.architecture.decoding import bytes_read_per_token
from slm.architecture.shapes import ModelShape
from slm.config.schema import Config
from slm.errors import DataError
from slm.formatting import count
from slm.studies.cells import Cell, RungKey, contrast_of
from slm.tracking.speeds import FILE_NAME

MAX_FAMILIES = 3  # of which the plan lists all pairs; of more, the contrast only
Pairs = list[tuple[ModelShape, ModelShape]]


def speed_file(config: Config) -> Path | None:
    """Return the file of measured speeds: speed.file, or speed.json in the study's folder if it exists.

    Raises:
        DataError: if speed.file does not exist.
    """
    if config.speed.file is not None:
        path = Path(config.speed.file)
        if not path.is_file():
            raise DataError(
                f"speed.file={path}: no such file; remove it, or measure the file with "
                f"python -m slm speed study={config.study.name}"
            )
        return path
    path = Path(config.runs_dir) / config.study.name / FILE_NAME
    return path if path.is_file() else None


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
    return list(_measured(pairs, path))


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
    """Yield the ratio if decoding is limited by memory bandwidth, and if it is limited by kernel launches."""
    if not pairs:
        return
    speed = config.speed
    tokens = speed.prompt_tokens + speed.new_tokens // 2  # mean length of the cache

    def read(shape: ModelShape) -> int:
        return bytes_read_per_token(
            shape, tokens=tokens, batch_size=speed.batch_size, dtype=speed.dtype
        )

    ratios = [
        f"{deep} / {wide} {_mean([read(a) / read(b) for a, b in shapes]):.2f} to "
        f"{_mean([a.depth / b.depth for a, b in shapes]):.2f}"
        for (deep, wide), shapes in pairs.items()
    ]
    yield (
        "Expected ratio of decode latency at equal FLOPs, from the bytes read per token (memory-bound) to the number of "
        f"layers (launch-bound): {', '.join(ratios)}; measure it with python -m slm speed study={config.study.name}"
    )


def _measured(pairs: Mapping[tuple[str, str], Pairs], path: Path) -> Iterator[str]:
    """Yield the geometric mean of the measured ratios over the rungs, per setting."""
    from analysis.compare.measured_speeds import load_settings  # late: imports pandas
    from slm.architecture.shapes import shape_key

    for setting, measured in load_settings(path).items():
        texts = []
        for (deep, wide), shapes in pairs.items():
            times = [
                [measured.get(shape_key(shape.as_dict())) for shape in pair] for pair in shapes
            ]
            known = [a.seconds / b.seconds for a, b in times if a is not None and b is not None]
            if known:
                spread = f"{min(known):.2f} to {max(known):.2f} over {count(len(known), 'size')}"
                texts.append(f"{deep} / {wide} {_mean(known):.2f} ({spread})")
        found = ", ".join(texts) or "no pair of shapes of this study is measured"
        yield f"Measured {setting.describe()} at equal FLOPs: {found}"


def _mean(ratios: Sequence[float]) -> float:
    """Return the geometric mean."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))
