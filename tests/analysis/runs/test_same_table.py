"""One table of runs in the forms that people keep it in: every form gives the same runs and the same result."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.compare.families import compare_families
from analysis.runs.load import load_runs

pytestmark = pytest.mark.numeric

NAMES = {"family": "mix", "n_flop": "N", "tokens": "D", "loss_nats_per_token": "loss"}
E_GAP = 0.15  # nats; more than the difference of the size terms at the largest size


def two_mixtures() -> pd.DataFrame:
    """Return a model trained on two mixtures of data: equal sizes and tokens, another E and another level of the size term."""
    generator = np.random.default_rng(5)
    rows = []
    for index, n in enumerate(np.round(np.geomspace(1.5e8, 2.5e9, 8))):
        for mix, e, a in (("a_mix", 1.8 + E_GAP, 530.0), ("b_mix", 1.8, 480.0)):
            for ratio in (2.0, 8.0, 30.0, 120.0)[index // 4 :]:
                tokens = round(n * ratio)
                loss = e + a * n**-0.34 + 1500 * tokens**-0.35 + generator.normal(0, 0.001)
                rows.append(
                    {"mix": mix, "shape": f"d{index}", "N": int(n), "D": tokens, "loss": loss}
                )
    return pd.DataFrame(rows)


def as_json(table: pd.DataFrame) -> str:
    return json.dumps(table.to_dict("records"))


def as_wandb(table: pd.DataFrame) -> str:
    """Write a table as W&B exports its table of runs, with a crashed run in it."""
    named = table.assign(Name="run", State="finished", Created="2024-05-01T00:00:00", _step=1000)
    crashed = named.iloc[:1].assign(State="crashed", loss=9.0)
    return pd.concat([crashed, named])[["Name", "State", "Created", *table, "_step"]].to_csv(
        index=False
    )


FORMS: dict[str, Callable[[pd.DataFrame], str]] = {
    "runs.tsv": lambda table: table.to_csv(index=False, sep="\t"),
    "runs.json": as_json,
    "runs.csv.gz": lambda table: table.to_csv(index=False),
    "wandb_export.csv": as_wandb,
}


def test_every_form_of_a_table_gives_the_same_result(tmp_path: Path) -> None:
    table = two_mixtures()
    table.to_csv(tmp_path / "runs.csv", index=False)
    runs = load_runs(tmp_path / "runs.csv", columns=NAMES).table
    found = compare_families(runs, deep="a_mix", wide="b_mix", bootstrap=0)
    verdict, block = found.verdict, found.block
    assert (verdict.word, verdict.exponent) == ("width_level_better", "open")
    assert block.is_equal_e_rejected and "equal E is rejected" in verdict.reasons[0]
    assert block.at_n is not None and block.level is not None
    assert block.level == pytest.approx(E_GAP + 50 * block.at_n**-0.34, abs=0.005)
    for name, write in FORMS.items():
        content = write(table).encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        pd.testing.assert_frame_equal(
            load_runs(tmp_path / name, columns=NAMES).table[list(NAMES)], runs[list(NAMES)]
        )
    # One family has batches of another size: its tokens are rounded to other numbers.
    in_batches = table["D"].where(
        table["mix"] == "a_mix", (table["D"] / 500_000).map(math.ceil) * 500_000
    )
    table.assign(D=in_batches).to_csv(tmp_path / "rounded.csv", index=False)
    rounded = load_runs(tmp_path / "rounded.csv", columns=NAMES).table
    again = compare_families(rounded, deep="a_mix", wide="b_mix", bootstrap=0)
    assert (again.verdict.word, again.verdict.exponent) == (verdict.word, verdict.exponent)
    assert again.block.level == pytest.approx(block.level, abs=0.001)
    assert again.block.left_out == block.left_out
