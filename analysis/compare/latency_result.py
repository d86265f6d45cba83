"""Two families at equal decode latency and at equal training time, from measured speeds of their shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.block.effects import Estimate
from analysis.compare.block_result import BlockResult
from analysis.compare.latency import (
    MIN_SHAPES,
    EqualLoss,
    EqualTime,
    EqualTimeModel,
    MeasuredTimes,
    TimeCurve,
)
from analysis.compare.measured_speeds import MeasuredShape, Setting, falling_spans
from analysis.formatting import count, format_interval, short_count
from slm.rounding import stable_argsort
from slm.summary import Rows, Summarized

NO_SHAPES = "this table has no shapes of slm, so no speeds can be assigned to its runs; load run directories or a results file"


@dataclass(frozen=True, repr=False)
class TimeContrast(Summarized):
    """Estimates at equal time per token and at equal loss in one setting.

    Attributes:
        reasons: why there is no estimate at all; level_reasons: why there is none at equal time.
        levels: at the largest common time first, then at smaller ones.
        multipliers: at the lowest common loss first, then at higher ones.
        sizes: one row per size with measured shapes in both families: rung, n, seconds of each family, ratio (deep /
            wide) and the standard error of ln(ratio).
        missing: labels of shapes with runs but without a measured time.
        single_rounds: number of shapes measured in one round, whose times have no standard error.
        falls: {family: spans (N, N) of measured sizes over which the time falls with N}.
    """

    deep: str
    wide: str
    setting: Setting
    reasons: tuple[str, ...] = ()
    level_reasons: tuple[str, ...] = ()
    levels: tuple[EqualTime, ...] = ()
    multipliers: tuple[EqualLoss, ...] = ()
    sizes: tuple[dict[str, Any], ...] = ()
    missing: tuple[str, ...] = ()
    single_rounds: int = 0
    falls: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)

    @property
    def level(self) -> EqualTime | None:
        """Level at the largest common time."""
        return self.levels[0] if self.levels else None

    @property
    def multiplier(self) -> EqualLoss | None:
        """Time multiplier at the lowest common loss."""
        return self.multipliers[0] if self.multipliers else None

    def title(self) -> str:
        return f"{self.deep} against {self.wide} at equal {self.setting.describe()}"

    def details(self) -> Iterator[tuple[str, str]]:
        for reason in (*self.reasons, *self.level_reasons):
            yield "REFUSED", reason
        if self.level is not None:
            at = format_seconds(self.level.seconds)
            yield "loss difference, nats [95% CI]", f"{level_text(self.level)} at {at}/token"
        if self.multiplier is not None:
            yield "time multiplier [95% CI]", multiplier_text(self.multiplier)
        if self.missing:
            yield "not measured", ", ".join(self.missing)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON; seconds are per token."""
        names = ("deep", "wide", "reasons", "level_reasons", "sizes", "missing", "single_rounds")
        return {
            **asdict(self.setting),
            **{name: getattr(self, name) for name in names},
            "falls": self.falls,
            "levels": [_fields(point, "level") for point in self.levels],
            "multipliers": [_fields(point, "log_multiplier") for point in self.multipliers],
        }


@dataclass(frozen=True)
class Latency:
    """All settings of a speed file, decode latency first, and the measured shapes of the first one for charts.

    `shapes`: one row per shape of any family: family, shape, n, seconds (per generated token), memory_bytes (weights and
    KV cache).
    """

    contrasts: tuple[TimeContrast, ...]
    shapes: tuple[dict[str, Any], ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def decoding(self) -> TimeContrast | None:
        """Return the first setting of decode latency."""
        return next((one for one in self.contrasts if one.setting.is_decoding), None)

    def to_dict(self) -> dict[str, Any]:
        return {
            "reasons": self.reasons,
            "settings": [one.to_dict() for one in self.contrasts],
            "shapes": self.shapes,
        }


def compare_at_equal_time(
    table: pd.DataFrame,
    block: BlockResult,
    speeds: Mapping[Setting, Mapping[str, MeasuredShape]],
) -> Latency:
    """Compare the two families of a block model at equal time, in every setting of `measured_speeds.settings_of`.

    `table`: one row per run with family, shape, rung, n (FLOPs per token / 6) and model_shape.
    """
    if "model_shape" not in table or table["model_shape"].isna().all():
        return Latency((), reasons=(NO_SHAPES,))
    shapes = _shapes(table)
    contrasts = tuple(_contrast(shapes, block, setting, speeds[setting]) for setting in speeds)
    first = next((setting for setting in speeds if setting.is_decoding), None)
    return Latency(contrasts, () if first is None else tuple(_rows(shapes, speeds[first])))


def _shapes(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per shape: family, shape, rung, n, model_shape."""
    columns = {"rung": "first", "n": "mean", "model_shape": "first"}
    known = table[table["model_shape"].notna()]
    return known.groupby(["family", "shape"], sort=False).agg(columns).reset_index()


def _rows(shapes: pd.DataFrame, measured: Mapping[str, MeasuredShape]) -> Iterator[dict[str, Any]]:
    for row in shapes.to_dict("records"):
        if (one := measured.get(row["model_shape"])) is not None:
            yield {
                "family": row["family"],
                "shape": row["shape"],
                "n": row["n"],
                "seconds": one.seconds,
                "memory_bytes": one.memory_bytes,
            }


def _contrast(
    shapes: pd.DataFrame,
    block: BlockResult,
    setting: Setting,
    measured: Mapping[str, MeasuredShape],
) -> TimeContrast:
    pair = shapes[shapes["family"].isin([block.deep, block.wide])]
    is_known = pair["model_shape"].isin(measured)
    keys = list(dict.fromkeys(pair.loc[is_known, "model_shape"]))
    times = MeasuredTimes(
        np.array([measured[key].log_seconds for key in keys]),
        np.array([measured[key].se for key in keys]),
        np.array([measured[key].rounds for key in keys], np.int64),
    )
    found = TimeContrast(
        block.deep,
        block.wide,
        setting,
        sizes=tuple(_sizes(pair[is_known], block, measured)),
        missing=tuple(
            f"{row['family']} {row['shape']}" for row in pair[~is_known].to_dict("records")
        ),
        single_rounds=sum(measured[key].rounds < 2 for key in keys),
        falls={
            name: falling_spans(
                (row["n"], measured[row["model_shape"]].seconds)
                for row in pair[is_known & (pair["family"] == name)].to_dict("records")
            )
            for name in (block.deep, block.wide)
        },
    )
    effects = block.level_effects
    if block.refused or effects is None:
        return replace(found, reasons=block.reasons)
    deep, wide = (_curve(pair[is_known], name, keys) for name in (block.deep, block.wide))
    reasons = tuple(_reasons(block, (deep, wide), is_assumed=effects.fit.law.is_assumed))
    if reasons:
        return replace(found, reasons=reasons)
    model = EqualTimeModel(effects, (deep, wide), times)
    found = replace(found, multipliers=tuple(model.multipliers()))
    if model.has_common_time:
        return replace(found, levels=tuple(model.levels()))
    return replace(found, level_reasons=(_no_common_time(block, model),))


def _reasons(
    block: BlockResult, curves: tuple[TimeCurve, TimeCurve], *, is_assumed: bool
) -> Iterator[str]:
    few = [
        f"{name} has {count(len(curve.sizes), 'measured size')}"
        for name, curve in zip((block.deep, block.wide), curves, strict=True)
        if len(curve.sizes) < MIN_SHAPES
    ]
    if few:
        yield f"{' and '.join(few)}, at least {MIN_SHAPES} are needed in each family"
    if is_assumed:
        yield (
            "the runs do not identify how the loss depends on size at equal tokens; train several token budgets per size"
        )


def _no_common_time(block: BlockResult, model: EqualTimeModel) -> str:
    names = block.deep, block.wide
    slow, fast = names[model.slower], names[1 - model.slower]
    bound = model.bound_without_common_time()
    text = format_interval(bound.value, *bound.interval)
    return (
        f"no common time, since the smallest measured size of {slow} takes longer than the largest of {fast}; between "
        f"these two sizes the loss difference ({slow} minus {fast}) is {text} nats/token; train larger sizes of {fast} or "
        f"smaller ones of {slow}"
    )


def _curve(pair: pd.DataFrame, family: str, keys: Sequence[str]) -> TimeCurve:
    rows = pair[pair["family"] == family]
    log_n = np.log(rows["n"].to_numpy(float))
    order = stable_argsort(log_n)
    index = np.array([keys.index(key) for key in rows["model_shape"]], np.int64)
    return TimeCurve(log_n[order], index[order])


def _sizes(
    pair: pd.DataFrame, block: BlockResult, measured: Mapping[str, MeasuredShape]
) -> Iterator[dict[str, Any]]:
    """Yield the times of both families and their ratio for each rung with measured shapes of both."""
    log_n = pair["n"].map(math.log).groupby(pair["rung"], sort=False).mean()
    for rung in log_n.index[stable_argsort(log_n)]:
        rows = pair[pair["rung"] == rung]
        sides = [
            [measured[key] for key in rows.loc[rows["family"] == name, "model_shape"]]
            for name in (block.deep, block.wide)
        ]
        if not all(sides):
            continue
        logs = [float(np.mean([one.log_seconds for one in side])) for side in sides]
        squares = [sum(one.se**2 for one in side) / len(side) ** 2 for side in sides]
        yield {
            "rung": rung,
            "n": math.exp(log_n[rung]),
            "seconds_deep": math.exp(logs[0]),
            "seconds_wide": math.exp(logs[1]),
            "ratio": math.exp(logs[0] - logs[1]),
            "ln_ratio_se": math.sqrt(sum(squares)),
        }


def _fields(point: EqualTime | EqualLoss, name: str) -> dict[str, Any]:
    """Return the fields of a point, with the estimate as value, standard error, interval and degrees of freedom."""
    values = dict(vars(point))
    estimate: Estimate = values.pop(name)
    ends = {name: estimate.value, f"{name}_se": estimate.se, f"{name}_ci": estimate.interval}
    return {**values, **ends, "df": estimate.df}


def level_text(point: EqualTime) -> str:
    return format_interval(point.level.value, *point.level.interval)


def multiplier_text(point: EqualLoss) -> str:
    low, high = map(math.exp, point.log_multiplier.interval)
    return format_interval(math.exp(point.log_multiplier.value), low, high, signed=False, digits=3)


def format_seconds(seconds: float) -> str:
    """Return a time per token in ms or µs with three digits."""
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def geometric_mean_ratio(sizes: Sequence[Mapping[str, Any]]) -> float:
    """Return the geometric mean of the time ratios deep / wide over sizes."""
    return math.exp(float(np.mean([math.log(row["ratio"]) for row in sizes])))


def ratio_rows(contrast: TimeContrast) -> Rows:
    """Return one row of text per size: N, time of each family, and their ratio."""
    return [
        {
            "N": short_count(row["n"]),
            contrast.deep: format_seconds(row["seconds_deep"]),
            contrast.wide: format_seconds(row["seconds_wide"]),
            "ratio": f"{row['ratio']:.3f}",
        }
        for row in contrast.sizes
    ]
