"""Runs of Gemstones (McLeish et al., arXiv 2502.06857) after cooldown, from the authors' clone or the shared CSV file.

Both files have width, depth, parameters, tokens and loss of each run; sizes and families are computed here. The
architecture is that of the authors' repository: heads of width 128, half as many key-value heads, a gated MLP of
width 4 * width, RMSNorm, untied vocabulary matrices, sequences of 2048 tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.arrays import Floats
from analysis.examples.published.claims import find_table
from slm.errors import DataError

IN_CLONE = "wandb_dfs/wandb_df_for_fitting_cool_end.jsonl"
IN_TEST_DATA = "scaling/gemstones_cooldown.csv"
NAMES = {  # column names of the raw file and of the CSV file
    "params_active_precise": "params_total",
    "N_total": "params_total",
    "final_loss": "loss_nats_per_token",
    "loss": "loss_nats_per_token",
}
COLUMNS = ("width", "depth", "params_total", "tokens", "loss_nats_per_token")
VOCABULARY, SEQUENCE, HEAD = 50304, 2048, 128
DEEP_BELOW, WIDE_FROM = 36.0, 75.0  # width / depth; not the authors' families, but a choice of ours


def read_gemstones() -> pd.DataFrame:
    """Return the runs from $GEMSTONES, a clone of mcleish7/gemstone-scaling-laws, or from $SLM_TEST_DATA.

    Raises:
        DataError: if there is no such file, or its parameter counts are not those of the architecture.
    """
    return read_runs(find_table("GEMSTONES", IN_CLONE, IN_TEST_DATA))


def read_runs(path: Path) -> pd.DataFrame:
    """Read the raw .jsonl file or the .csv file, and return one row per run with sizes, aspect ratio and family."""
    raw = pd.read_json(path, lines=True) if path.suffix == ".jsonl" else pd.read_csv(path)
    renamed = raw.rename(columns=NAMES)
    missing = [name for name in COLUMNS if name not in renamed]
    if missing:
        raise DataError(f"{path}: no column {missing[0]!r}; columns: {', '.join(raw.columns)}")
    runs = renamed[list(COLUMNS)].reset_index(drop=True)
    width, depth = runs["width"].to_numpy(float), runs["depth"].to_numpy(float)
    key_values = 2 * (width // (2 * HEAD)) * HEAD  # an odd number of heads is rounded down
    body = depth * (width * (14 * width + key_values) + 2 * width) + width
    counted = body + 2 * VOCABULARY * width
    wrong = np.flatnonzero(counted != runs["params_total"])
    if len(wrong):
        row = runs.iloc[wrong[0]]
        raise DataError(
            f"{path}: {row['params_total']:.0f} parameters at width {row['width']:.0f} and depth "
            f"{row['depth']:.0f}; this architecture has {counted[wrong[0]]:.0f}"
        )
    n_flop = flops_per_token(width, depth) / 6
    aspect = width / depth
    return runs.assign(
        shape=[f"{w:.0f}x{d:.0f}" for w, d in zip(width, depth, strict=True)],
        params_non_embedding=body,
        n_flop=n_flop,
        flops=6 * n_flop * runs["tokens"],
        aspect_ratio=aspect,
        family=families(aspect),
    )


def flops_per_token(width: Floats, depth: Floats) -> Floats:
    """Return the training FLOPs per token, with the operations that the authors' flops_per_token_gqa counts.

    Per layer, forward and backward: 18 width^2 for the attention matrices and 72 width^2 for the MLP; per head 387 for
    scores, softmax and weighted sum over half the sequence, whose forward pass is counted 3.5 times because it is
    recomputed; 183.75 width for rotary positions, norms, activations and residuals. The head counts, the lookup of the
    embedding does not. Half a key-value head counts as half.
    """
    attention = 3.5 * SEQUENCE * (3 + 3 / HEAD) * width
    layer = 90 * width**2 + 183.75 * width + attention
    return np.asarray(depth * layer + (21 + 6 * VOCABULARY) * width)


def families(
    aspect: Iterable[float], deep_below: float = DEEP_BELOW, wide_from: float = WIDE_FROM
) -> list[str]:
    """Return `deep`, `mid` or `wide` by width / depth."""
    return ["deep" if one < deep_below else "wide" if one >= wide_from else "mid" for one in aspect]
