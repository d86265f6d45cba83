"""Build the table of runs from results of slm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from scipy import special

from analysis.runs.tables import run_row
from slm.architecture.flops import flop_equivalent_params
from slm.architecture.shapes import shape_key
from slm.tracking.result import RunResult

CHANCE_SPIKES = (
    1 / 60
)  # per logged loss, of noise with the tails of Student's t with 5 degrees of freedom
MIN_LOGGED = (
    100  # losses; in shorter runs the robust standard deviation is too uncertain to judge by
)
LOGGED_EVERY = 10  # steps; default of trainer.log_every_steps
UNUSUAL = 0.001  # probability of so many spikes by chance
ARCHITECTURE = ("tied", "mlp", "qk_norm", "layer_sharing", "d_head")


def results_table(results: Sequence[RunResult]) -> pd.DataFrame:
    """Return one row per result, sorted by family, FLOPs and seed."""
    rows = [
        {**_row(result), "unusual_spikes": unusual}
        for result, unusual in zip(results, unusual_spikes(results), strict=True)
    ]
    return pd.DataFrame(rows).sort_values(["family", "flops", "seed"], ignore_index=True)


def unusual_spikes(results: Sequence[RunResult]) -> list[bool]:
    """Return which runs have more loss spikes of their own than chance explains.

    A spike at a step where another shape has one too is due to the batch, which all shapes of a seed share. The
    logging interval divides all recorded steps; too small an interval only makes the rule milder.
    """
    shapes: dict[tuple[object, ...], set[str]] = {}
    for result in results:
        for step in result.loss_spikes:
            key = (result.seed, result.batch_tokens, result.data_fingerprint, step)
            shapes.setdefault(key, set()).add(str(result.shape))
    every = math.gcd(LOGGED_EVERY, *(int(key[-1]) for key in shapes))  # type: ignore[call-overload]
    unusual = []
    for result in results:
        batch = (result.seed, result.batch_tokens, result.data_fingerprint)
        own = sum(len(shapes[*batch, step]) == 1 for step in result.loss_spikes)
        unusual.append(are_unusual(own, result.steps // every))
    return unusual


def are_unusual(spikes: int, logged: int) -> bool:
    """Return whether a run of `logged` losses has more spikes than noise explains, which flags < 1% of clean runs."""
    if not spikes or logged < MIN_LOGGED:
        return False
    return bool(special.bdtrc(spikes - 1, logged, CHANCE_SPIKES) < UNUSUAL)


def _row(result: RunResult) -> dict[str, object]:
    return {
        "run_id": result.run_id,
        "study": result.study,
        "recipe_id": result.recipe_id,
        "family": result.family,
        "rung": result.rung,
        "size": result.size or round(flop_equivalent_params(result.reference_flops_per_token)),
        "architecture": _architecture(result),
        "model_shape": shape_key(result.shape),
        **run_row(result.shape, vars(result), result.schedule),
        "reference_flops_per_token": result.reference_flops_per_token,
        "warmup_tokens": result.schedule.get("warmup_tokens"),
        "epochs": result.epochs,
        "seed": result.seed,
        "peak_lr": result.peak_lr,
        "parametrization": result.parametrization,
        "taken_over_steps": result.taken_over_steps,
        "loss_spikes": len(result.loss_spikes),
        "batch_tokens": result.batch_tokens,
        "precision": result.precision,
        "loss_nats_per_token": result.val_loss_nats_per_token,
        "bits_per_byte": result.val_bits_per_byte,
        "val_errors": result.val_errors,
        "val_tokens": result.val_tokens,
        "val_fingerprint": result.val_fingerprint,
        "tokens_per_second": result.tokens_per_second,
        "commit": result.commit,
    }


def _architecture(result: RunResult) -> str:
    """Return the architecture settings that must be equal within a family, as text."""
    return ", ".join(f"{key}={result.shape[key]}" for key in ARCHITECTURE)
