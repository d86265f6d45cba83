"""Solves integer shapes: a family's aspect ratio at a size, matched in FLOPs to its rivals.

A size means the training FLOPs per token f of the ideal balanced shape: real-valued depth and width
at the reference aspect ratio, with that many non-embedding parameters. Every family of the rung
solves to f with integers, the same d_head and the same GQA ratio; the inner width d_ff is the fine
adjustment, kept within 10% of the common d_ff / d_model. Small integers leave gaps, so f itself
gives way, by up to 10%, to the nearest value that all families of the ladder can meet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

from slm.architecture.compute import TRAINING_FACTOR, training_flops_per_token
from slm.architecture.shapes import ModelShape
from slm.errors import ConfigError, Problem
from slm.schema import LadderConfig

MATCH_TOLERANCE = 0.03  # a shape may differ this much from its rung in FLOPs per token
CLOSE_MATCH = 0.01  # within this, the better aspect ratio decides
FF_TOLERANCE = 0.10  # d_ff / d_model may leave the common ratio by this share
RUNG_TOLERANCE = 0.10  # a rung may differ this much from the ideal balanced shape in f
ASPECT_TOLERANCE = 1 / 3  # a shape should not leave its family's aspect ratio by more
DEPTHS_TRIED = 4  # layers tried on either side of the one the aspect ratio asks for


@dataclass(frozen=True)
class ShapeFrame:
    """What all shapes of one comparison share."""

    vocab_size: int
    seq_len: int
    tied: bool
    d_head: int
    gqa_ratio: int
    ff_ratio: float
    d_ff_multiple: int

    @classmethod
    def of(cls, ladder: LadderConfig, *, vocab_size: int, seq_len: int, tied: bool) -> ShapeFrame:
        return cls(
            vocab_size=vocab_size,
            seq_len=seq_len,
            tied=tied,
            d_head=ladder.d_head,
            gqa_ratio=ladder.gqa_ratio,
            ff_ratio=ladder.ff_ratio,
            d_ff_multiple=ladder.d_ff_multiple,
        )

    def shape(self, n_layers: int, n_heads: int, d_ff: int) -> ModelShape:
        return ModelShape(
            n_layers=n_layers,
            d_model=n_heads * self.d_head,
            n_heads=n_heads,
            n_kv_heads=n_heads // self.gqa_ratio,
            d_head=self.d_head,
            d_ff=d_ff,
            vocab_size=self.vocab_size,
            seq_len=self.seq_len,
            tied=self.tied,
        )


@lru_cache(maxsize=1024)
def rung_flops_per_token(
    frame: ShapeFrame, reference: float, aspect_ratios: tuple[float, ...], size: int
) -> int:
    """The f that all shapes of a rung meet: the nearest to the ideal that every family can reach."""
    ideal = ideal_flops_per_token(frame, reference, size)
    reachable = [_reachable(frame, aspect_ratio, ideal) for aspect_ratio in aspect_ratios]
    ends = [end for ranges in reachable for span in ranges for end in span]
    for f in sorted([ideal, *ends], key=lambda f: abs(math.log(f / ideal))):
        if abs(f / ideal - 1) > RUNG_TOLERANCE:
            break
        if all(any(low <= f <= high for low, high in ranges) for ranges in reachable):
            return round(f)
    return round(ideal)


def ideal_flops_per_token(frame: ShapeFrame, aspect_ratio: float, size: int) -> float:
    """Training FLOPs per token of a real-valued shape with `size` matrix parameters in its blocks."""
    # Of one block, in units of d_model^2: query and output, key and value, the gated MLP.
    params_per_d2 = 2 + 2 / frame.gqa_ratio + 3 * frame.ff_ratio
    d_model = (size * aspect_ratio / params_per_d2) ** (1 / 3)
    scores = 2 * frame.seq_len * d_model * (d_model / aspect_ratio)
    return TRAINING_FACTOR * (2 * size + scores + 2 * d_model * frame.vocab_size)


@lru_cache(maxsize=1024)
def solve_shape(frame: ShapeFrame, aspect_ratio: float, flops_per_token: int) -> ModelShape:
    """The shape nearest to `aspect_ratio` among those that meet the training FLOPs per token.

    Raises:
        ConfigError: when no shape comes within 3%; it names the nearest that exists.
    """
    best = min(
        _candidates(frame, aspect_ratio, flops_per_token),
        key=lambda shape: _penalty(shape, aspect_ratio, flops_per_token),
        default=None,
    )
    if best is None or _mismatch(best, flops_per_token) > MATCH_TOLERANCE:
        raise ConfigError([_impossible(frame, aspect_ratio, flops_per_token, best)])
    return best


def aspect_is_kept(shape: ModelShape, aspect_ratio: float) -> bool:
    return abs(shape.aspect_ratio / aspect_ratio - 1) <= ASPECT_TOLERANCE + 1e-9


def _grid(
    frame: ShapeFrame, aspect_ratio: float, largest: float
) -> Iterator[tuple[int, int, range]]:
    """(n_layers, n_heads, allowed d_ff) of every width whose single layer is not yet too large."""
    for n_heads in count(frame.gqa_ratio, frame.gqa_ratio):
        widths = _allowed_d_ff(frame, n_heads)
        if not widths:  # so narrow that no multiple of d_ff_multiple lies within the tolerance
            continue
        if training_flops_per_token(frame.shape(1, n_heads, widths[0])) > largest:
            return
        depth = round(n_heads * frame.d_head / aspect_ratio)
        for n_layers in range(max(1, depth - DEPTHS_TRIED), depth + DEPTHS_TRIED + 1):
            yield n_layers, n_heads, widths


def _allowed_d_ff(frame: ShapeFrame, n_heads: int) -> range:
    step, common = frame.d_ff_multiple, frame.ff_ratio * n_heads * frame.d_head
    lowest = math.ceil((1 - FF_TOLERANCE) * common / step) * step
    highest = math.floor((1 + FF_TOLERANCE) * common / step) * step
    return range(lowest, highest + 1, step)


def _reachable(frame: ShapeFrame, aspect_ratio: float, near: float) -> list[tuple[int, int]]:
    """Ranges of f that shapes which keep the aspect ratio can meet by their d_ff alone."""
    ranges = []
    for n_layers, n_heads, widths in _grid(frame, aspect_ratio, near * (1 + RUNG_TOLERANCE)):
        narrow, wide = (frame.shape(n_layers, n_heads, d_ff) for d_ff in (widths[0], widths[-1]))
        if aspect_is_kept(narrow, aspect_ratio):
            ranges.append((training_flops_per_token(narrow), training_flops_per_token(wide)))
    return ranges


def _candidates(frame: ShapeFrame, aspect_ratio: float, target: int) -> Iterator[ModelShape]:
    """One shape per depth and width, with the allowed d_ff that brings it nearest to the target."""
    for n_layers, n_heads, widths in _grid(frame, aspect_ratio, target * (1 + MATCH_TOLERANCE)):
        none, one_step = (
            training_flops_per_token(frame.shape(n_layers, n_heads, d_ff))
            for d_ff in (0, widths.step)
        )  # FLOPs are linear in d_ff
        steps = round((target - none) / (one_step - none))
        yield frame.shape(n_layers, n_heads, min(max(steps * widths.step, widths[0]), widths[-1]))


def _mismatch(shape: ModelShape, target: int) -> float:
    return abs(training_flops_per_token(shape) / target - 1)


def _penalty(shape: ModelShape, aspect_ratio: float, target: int) -> tuple[int, float, float]:
    """Order of preference: close, matched, matched but off its aspect ratio, not matched."""
    mismatch = _mismatch(shape, target)
    aspect_error = abs(math.log(shape.aspect_ratio / aspect_ratio))
    if (
        mismatch > MATCH_TOLERANCE
    ):  # only the mismatch counts, so that the error can name the nearest
        return (3, mismatch, aspect_error)
    if not aspect_is_kept(shape, aspect_ratio):
        return (2, aspect_error, mismatch)
    return (0 if mismatch <= CLOSE_MATCH else 1, aspect_error, mismatch)


def _impossible(
    frame: ShapeFrame, aspect_ratio: float, target: int, best: ModelShape | None
) -> Problem:
    rule = (
        f"no shape with aspect ratio near {aspect_ratio:g}, d_head {frame.d_head} and GQA ratio "
        f"{frame.gqa_ratio} comes within {MATCH_TOLERANCE:.0%} of {target:,} training FLOPs per token"
    )
    if best is None:
        heads = next(h for h in count(frame.gqa_ratio, frame.gqa_ratio) if _allowed_d_ff(frame, h))
        best = frame.shape(1, heads, _allowed_d_ff(frame, heads)[0])
    fix = f"nearest: {best.label} with {training_flops_per_token(best):,}; try another size"
    return Problem("size", target, rule, fix)
