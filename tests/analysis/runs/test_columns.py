"""Rules for the columns of users' tables: labels, budgets, units, copies of runs and learning rates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.compare.families import compare_families
from analysis.report.study_report import analyze_study
from analysis.runs.load import Runs, load_runs, runs_from_results
from analysis.runs.result_table import are_unusual
from analysis.runs.study import Columns, Study, prepare
from slm.errors import DataError
from slm.tracking.results_file import read_results
from slm.tracking.spikes import loss_spikes
from tests.analysis.block.studies import study
from tests.conftest import ROOT

EXAMPLES = ROOT / "analysis" / "examples"
COLUMNS = Columns(flops="flops", rung="rung")


@pytest.fixture
def table() -> pd.DataFrame:
    return study(8, d_alpha=0.05, tau=0.005, sigma=0.005, budgets=(5, 20, 80), seed=1)


def loaded(table: pd.DataFrame, folder: Path, **options: Any) -> Runs:
    table.to_csv(folder / "runs.csv", index=False)
    return load_runs(folder / "runs.csv", **options)


def prepared(table: pd.DataFrame, columns: Columns = COLUMNS) -> Study:
    return prepare(table, columns, None, None)


class TestTokens:
    def test_tokens_within_a_thousandth_are_one_budget_in_any_row_order(
        self, table: pd.DataFrame
    ) -> None:
        factor = np.where(table["family"] == "deep", 1.0, 1 + 9e-4)
        rounded = table.assign(tokens=table["tokens"] * factor)
        study = prepared(rounded)
        assert study.table.groupby(["rung", "tokens"]).ngroups == 24 and not study.warnings
        shuffled = prepared(rounded.sample(frac=1, random_state=0)).table
        assert shuffled["tokens"].tolist() == study.table["tokens"].tolist()
        apart = prepared(table.assign(tokens=table["tokens"] * (1 + 5 * (factor - 1))))
        assert "48 of 48 runs share no token count" in apart.warnings[-1]

    def test_runs_without_a_partner_are_counted(self, table: pd.DataFrame) -> None:
        some = prepared(table[~((table["family"] == "deep") & (table["rung"] < 2))])
        (warning,) = some.warnings
        assert "6 of 42 runs share no token count" in warning and "run the other family" in warning

    def test_tokens_proportional_to_own_n_are_named_as_the_cause(self, table: pd.DataFrame) -> None:
        ratio = np.tile([5.0, 20.0, 80.0], 16)
        n = table["n_flop"] * np.where(table["family"] == "deep", 1.02, 0.98)
        own = table.assign(n_flop=n, tokens=ratio * n, flops=6 * n * ratio * n)
        (warning,) = prepared(own).warnings
        assert "48 of 48 runs share no token count" in warning
        assert "tokens are proportional to each family's own N; give all families" in warning


class TestLabels:
    @pytest.mark.parametrize("empty", [None, float("nan"), "", "  "])
    @pytest.mark.parametrize("name", ["family", "shape", "rung", "budget", "tokens_per_param"])
    def test_a_missing_value_is_an_error_with_column_and_row(
        self, table: pd.DataFrame, name: str, empty: Any
    ) -> None:
        if name not in table:
            table[name] = np.tile([5.0, 20.0, 80.0], 16)
        table = table.astype({name: object})
        table.loc[3, name] = empty
        with pytest.raises(DataError, match=rf"^{name}: no (label|number) in row 3; give every"):
            prepared(table)

    def test_an_empty_column_counts_as_absent(self, table: pd.DataFrame) -> None:
        empty = table.assign(rung=None, budget=np.nan, tokens_per_param="", size=None)
        study = prepared(empty)
        assert study.table["rung"].nunique() == 8
        assert set(study.table["tokens_per_param"]) == {5.0, 20.0, 80.0}

    def test_families_that_are_no_text(self, table: pd.DataFrame) -> None:
        with pytest.raises(DataError, match="no family '1'; choose one of: deep, wide"):
            compare_families(table, deep=1, wide=2)  # type: ignore[arg-type]
        numbered = table.assign(family=table["family"].map({"deep": 1, "wide": 2}))
        study = prepare(numbered, COLUMNS, 1, 2)  # type: ignore[arg-type]
        assert (study.deep, study.wide) == ("1", "2")

    def test_spaces_around_labels_do_not_count(self, table: pd.DataFrame, tmp_path: Path) -> None:
        table.loc[::5, "family"] += " "
        runs = loaded(table.assign(status="finished "), tmp_path)
        assert runs.families == ["deep", "wide"] and len(runs.table) == 48
        assert prepared(table).families == ["deep", "wide"]
        table.loc[0, "family"] = "Deep"
        (warning,) = loaded(table, tmp_path).warnings
        assert "'Deep' and 'deep' count as different" in warning
        assert warning in prepare(table, COLUMNS, "deep", "wide").warnings

    def test_a_column_size_of_words_is_not_used(self, table: pd.DataFrame) -> None:
        words = prepared(table.assign(size=[f"{n / 1e6:.0f}M" for n in table["n_flop"]]))
        assert words.table["size"].tolist() == prepared(table).table["size"].tolist()


class TestUnits:
    def test_a_budget_in_flops_is_set_aside(self, table: pd.DataFrame) -> None:
        study = prepared(table.assign(budget=table["flops"]))
        assert set(study.table["tokens_per_param"]) == {5.0, 20.0, 80.0}
        (warning,) = study.warnings
        assert (
            warning.startswith("budget is not used: it is ") and "times tokens / n_flop" in warning
        )

    @pytest.mark.parametrize("scale", [1 / 20, 1 / 3, 1.3])
    def test_flops_that_differ_from_n_and_tokens(
        self, table: pd.DataFrame, tmp_path: Path, scale: float
    ) -> None:
        table["flops"] *= scale
        (warning,) = loaded(table, tmp_path).warnings
        assert warning.startswith(f"flops are {scale:.3g} times 6 n_flop tokens (median; ")
        assert "compute is taken from flops" in warning
        assert prepared(table).warnings == (warning,)

    def test_flops_that_agree(self, table: pd.DataFrame, tmp_path: Path) -> None:
        assert not loaded(table, tmp_path).warnings
        total = table.assign(flops=1.9 * table["flops"]).rename(columns={"n_flop": "params_total"})
        assert not loaded(total, tmp_path).warnings  # attention and head are not in 6 N
        uneven = table.assign(flops=table["flops"] * np.tile([1.0, 1.0, 2.5], 16))
        assert "1 times 6 n_flop tokens (median; 1 to 2.5)" in loaded(uneven, tmp_path).warnings[0]

    @pytest.mark.parametrize(("power", "unit"), [(9, "GFLOPs"), (12, "TFLOPs"), (15, "PFLOPs")])
    def test_flops_in_another_unit(
        self, table: pd.DataFrame, tmp_path: Path, power: int, unit: str
    ) -> None:
        table["flops"] /= 10**power
        advice = f"if they are in {unit}, multiply by 1e{power}"
        unused = loaded(table, tmp_path)  # a column that only has the name
        assert "column flops is not used" in unused.warnings[0] and advice in unused.warnings[0]
        assert "flops" not in unused.table
        with pytest.raises(DataError, match=advice):
            loaded(table, tmp_path, columns={"flops": "flops"})
        with pytest.raises(DataError, match=advice):
            prepared(table)

    @pytest.mark.parametrize(
        ("name", "change", "advice"),
        [
            ("n_flop", lambda n: n / 1e6, "n_flop is 9.985 to 317.1: too small for a count; multiply millions by 1e6"),
            ("n_flop", lambda n: n / 1e9, "too small for a count; multiply millions by 1e6 and billions by 1e9"),
            ("n_flop", np.log10, "n_flop is 6.999 to 8.501, which looks like log10"),
            ("tokens", lambda d: d / 1e9, "tokens is .*: too small for a count"),
            ("tokens", np.log10, "tokens is .*looks like log10"),
            ("tokens", lambda d: d * 1e9, "tokens is 2e[+]10 times n_flop .median.: one of them"),
            ("flops", np.log10, "flops are .*looks like log10"),
        ],
    )  # fmt: skip
    def test_values_in_other_units_are_refused(
        self, table: pd.DataFrame, tmp_path: Path, name: str, change: Any, advice: str
    ) -> None:
        scaled = table.assign(**{name: change(table[name])})
        kept = scaled if name == "flops" else scaled.drop(columns="flops")
        columns = {"flops": "flops"} if name == "flops" else None
        with pytest.raises(DataError, match=advice):
            loaded(kept, tmp_path, columns=columns)

    def test_a_ratio_of_flops_is_no_logarithm(self, table: pd.DataFrame, tmp_path: Path) -> None:
        table["flops"] = table["flops"] / 1e9
        renamed = table.rename(columns={"flops": "C"})
        with pytest.raises(DataError, match=r"runs\.csv: C are 1e-09 times 6 n_flop tokens"):
            loaded(renamed, tmp_path, columns={"flops": "C"})

    @pytest.mark.parametrize("text", ["20M", "1B", "20,000,000", "20.000.000"])
    def test_numbers_with_units_or_separators(
        self, table: pd.DataFrame, tmp_path: Path, text: str
    ) -> None:
        with pytest.raises(DataError, match=r"above 0 for tokens; write 125M as 1\.25e8, without"):
            loaded(table.assign(tokens=text), tmp_path)

    @pytest.mark.parametrize("word", ["-", "diverged", "OOM", "inf", "nan"])
    def test_words_for_no_loss(self, table: pd.DataFrame, tmp_path: Path, word: str) -> None:
        table = table.astype({"loss_nats_per_token": object})
        table.loc[3, "loss_nats_per_token"] = word
        assert loaded(table, tmp_path).dropped == {"no final loss, or diverged": 1}

    def test_losses_that_are_no_nats(self, table: pd.DataFrame, tmp_path: Path) -> None:
        for name, advice in (("val_bpb", "ln 2"), ("Bits", "ln 2"), ("eval_ppl", "logarithm")):
            renamed = table.rename(columns={"loss_nats_per_token": name})
            (note,) = loaded(renamed, tmp_path, columns={"loss_nats_per_token": name}).warnings
            assert note.startswith(f"column {name}: ") and advice in note
        renamed = table.rename(columns={"loss_nats_per_token": "orbit"})
        assert not loaded(renamed, tmp_path, columns={"loss_nats_per_token": "orbit"}).warnings
        renamed.loc[3, "orbit"] = -1.0
        with pytest.raises(DataError, match="orbit=-1 in line 5: a loss in nats per token must be"):
            loaded(renamed, tmp_path, columns={"loss_nats_per_token": "orbit"})

    @pytest.mark.parametrize("name", ["params_total", "params_non_embedding"])
    def test_another_definition_of_n_is_noted(
        self, table: pd.DataFrame, tmp_path: Path, name: str
    ) -> None:
        renamed = table.rename(columns={"n_flop": "N"})
        runs = loaded(renamed, tmp_path, columns={name: "N"})
        report = analyze_study(runs, bootstrap=0)
        assert report.comparison.block.n_name == name
        assert any(note.startswith(f"N is {name} (") for note in report.warnings)
        assert not any(
            note.startswith("N is ") for note in analyze_study(table, bootstrap=0).warnings
        )


class TestNames:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"columns": {"tokns": "D"}}, r"tokns=D: no such column; did you mean tokens\?"),
            (
                {"constants": {"famly": "mine"}},
                r"famly=mine: no such column; did you mean family\?",
            ),
            ({"columns": {"tokens": 3}}, "columns: tokens=3: must be the name of a column"),
            ({"constants": {"family": None}}, "constants: family=None: must be a word or a number"),
            ({"columns": "tokens=D"}, "columns='tokens=D': must be a dictionary"),
            (
                {"columns": {"seed": "seed"}, "constants": {"seed": "1"}},
                "seed is given both as column 'seed' and as constant '1'",
            ),
        ],
    )
    def test_wrong_pairs_in_python(
        self, table: pd.DataFrame, tmp_path: Path, options: Any, message: str
    ) -> None:
        with pytest.raises(DataError, match=message):
            loaded(table, tmp_path, **options)

    def test_a_rung_of_several_sizes_is_set_aside(
        self, table: pd.DataFrame, tmp_path: Path
    ) -> None:
        table["rung"] = np.tile([1, 2, 3], 16)
        runs = loaded(table, tmp_path)
        assert "rung" not in runs.table
        assert runs.warnings[0].startswith(
            "column rung is not used: n_flop is 9.98e+06 to 3.17e+08 in rung 1"
        )
        assert "rung" in loaded(table, tmp_path, columns={"rung": "rung"}).table


class TestRows:
    def test_runs_that_are_all_dropped(self, table: pd.DataFrame, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"runs\.csv: no comparable run; 48 undecayed"):
            loaded(table.assign(decayed="no"), tmp_path)

    def test_checkpoints_of_a_table_of_models_are_no_runs(
        self, table: pd.DataFrame, tmp_path: Path
    ) -> None:
        runs = loaded(table.assign(state=["checkpoint", *["finished"] * 47]), tmp_path)
        assert runs.dropped == {"not finished (checkpoint)": 1} and not runs.warnings

    @pytest.mark.parametrize(
        ("yes", "no"), [("yes", "no"), ("True", "False"), (1, 0), (True, False)]
    )
    def test_undecayed_runs_are_dropped(
        self, table: pd.DataFrame, tmp_path: Path, yes: Any, no: Any
    ) -> None:
        runs = loaded(table.assign(decayed=[yes, no] * 24), tmp_path)
        assert len(runs.table) == 24 and runs.dropped == {"undecayed": 24}
        with pytest.raises(DataError, match=r"decayed='perhaps' in line 2: must be yes or no"):
            loaded(table.assign(decayed=["perhaps", *["yes"] * 47]), tmp_path)

    @pytest.mark.parametrize("name", ["status", "State"])
    def test_states_compare_without_case(
        self, table: pd.DataFrame, tmp_path: Path, name: str
    ) -> None:
        runs = loaded(table.assign(**{name: ["Finished", "Crashed"] * 24}), tmp_path)
        assert len(runs.table) == 24 and runs.dropped == {"not finished (crashed)": 24}

    def test_runs_without_an_id_are_no_copies(self, table: pd.DataFrame, tmp_path: Path) -> None:
        ids = [f"r{row}" if row % 2 else None for row in range(48)]
        runs = loaded(table.assign(run_id=ids), tmp_path)
        assert len(runs.table) == 48 and not runs.dropped
        again = pd.concat([table.assign(run_id=ids), table.assign(run_id=ids).iloc[:3]])
        assert loaded(again, tmp_path).dropped == {"same run in another study": 1, "duplicate": 2}

    def test_runs_without_a_seed_are_no_copies(self, table: pd.DataFrame, tmp_path: Path) -> None:
        seeds = [0.0 if row % 2 else None for row in range(48)]
        again = table.assign(loss_nats_per_token=table["loss_nats_per_token"] + 0.01)
        runs = loaded(pd.concat([table.assign(seed=seeds), again.assign(seed=seeds)]), tmp_path)
        assert len(runs.table) == 96 and not runs.dropped
        assert runs.table["seed"].nunique() == 1 + 48

    def test_two_results_of_one_run_are_refused(self) -> None:
        results = list(read_results(EXAMPLES / "micro_first" / "results.jsonl").values())
        other = replace(results[0], val_loss_nats_per_token=3.0)
        with pytest.raises(DataError, match=rf"run_id={other.run_id}: 2 different results, "):
            runs_from_results([*results, other])
        repeated = replace(results[0], tokens_per_second=1.0)
        assert runs_from_results([*results, repeated]).dropped["same run in another study"] == 1

    def test_runs_that_share_a_name_are_no_copies(
        self, table: pd.DataFrame, tmp_path: Path
    ) -> None:
        named = table.assign(run_id=table["shape"])
        runs = loaded(pd.concat([named, named.iloc[:4]]), tmp_path)
        assert len(runs.table) == 48 and runs.dropped == {"same run in another study": 4}

    def test_a_rate_that_follows_a_rule_is_no_sweep(
        self, table: pd.DataFrame, tmp_path: Path
    ) -> None:
        runs = loaded(table.assign(peak_lr=table["tokens"] ** -0.3), tmp_path)
        assert len(runs.table) == 48 and not runs.dropped

    def test_one_column_of_a_file_may_have_two_names(
        self, table: pd.DataFrame, tmp_path: Path
    ) -> None:
        bare = table.drop(columns="shape").rename(columns={"n_flop": "N", "tokens": "D"})
        columns = {"n_flop": "N", "shape": "N", "tokens": "D"}
        runs = loaded(bare.assign(tokens="1.4B"), tmp_path, columns=columns)
        assert len(runs.table) == 48
        assert runs.table["tokens"].sum() == pytest.approx(table["tokens"].sum())
        assert runs.table.groupby("shape")["n_flop"].nunique().eq(1).all()
        assert runs.table["shape"].nunique() == 16 and "N" not in runs.table


class TestSpikes:
    def test_examples(self) -> None:
        for name in ("demo", "micro_first"):
            runs = examples(name)
            assert not runs.table["unusual_spikes"].any()
            assert not any("loss spikes" in note for note in runs.warnings)

    @pytest.mark.numeric
    @pytest.mark.parametrize(("logged", "repeats"), [(40, 100), (100, 200), (1000, 60)])
    @pytest.mark.parametrize("tails", [5, 1000])  # degrees of freedom of Student's t; 1000: normal
    def test_clean_runs_are_not_flagged(self, logged: int, repeats: int, tails: int) -> None:
        rng = np.random.default_rng([logged, tails])
        descent = 2 + 3 * np.arange(1, logged + 1) ** -0.4
        curves = descent + 0.05 * rng.standard_t(tails, size=(repeats, logged))
        flagged = [are_unusual(len(loss_spikes(curve.tolist())), logged) for curve in curves]
        assert np.mean(flagged) < 0.01

    def test_spikes_of_one_shape_are_reported_and_spikes_of_a_batch_are_not(self) -> None:
        results = list(read_results(EXAMPLES / "demo" / "results.jsonl").values())
        steps = list(range(50, 650, 30))
        spiky = replace(results[0], loss_spikes=steps, steps=2000)
        found = runs_from_results([spiky, *results[1:]]).table
        assert found.loc[found["unusual_spikes"], "run_id"].tolist() == [spiky.run_id]
        batch = [replace(result, loss_spikes=steps, steps=2000) for result in results]
        assert not runs_from_results(batch).table["unusual_spikes"].any()


def examples(name: str) -> Runs:
    return load_runs(EXAMPLES / name / "results.jsonl")
