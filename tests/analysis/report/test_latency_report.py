"""The report at equal latency: from speed.json to text, tables, charts and results.json."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.charts import pareto_figures, report_figures
from analysis.charts.pareto import pareto_front
from analysis.compare.fit_block import fit_block_model
from analysis.compare.latency_result import compare_at_equal_time
from analysis.compare.measured_speeds import (
    DECODING,
    TRAINING,
    falling_spans,
    load_settings,
    settings_of,
)
from analysis.report import latency_text, text
from analysis.report.html import page
from analysis.report.sections import sections
from analysis.report.study_report import StudyReport, analyze_study
from analysis.report.write import markdown, results
from analysis.runs.load import load_runs, runs_from_results
from slm.architecture.decoding import bytes_read_per_token, decoding_memory_bytes, kv_cache_bytes
from slm.architecture.shapes import ModelShape, count_parameters
from slm.errors import DataError
from slm.formatting import short_count
from slm.tracking.results_file import read_results
from slm.tracking.speeds import InferenceSpeed, ShapeSpeed, write_speeds
from tests.analysis.report.test_report import Page, run_main
from tests.analysis.test_charts import values
from tests.conftest import ROOT

pytestmark = pytest.mark.numeric

MICRO = ROOT / "analysis" / "examples" / "micro_first" / "results.jsonl"
FINISHED = ROOT / "tests/data/runs_v1/single/deep_thin-L6-d32-0.041Mtok-s0-5252f679"
DEVICE = "CPU of the test, 1 thread"
PROMPT, NEW = 16, 32
Law = Callable[[ModelShape], float]


def micro_shapes() -> dict[tuple[str, str], ModelShape]:
    found = {}
    for result in read_results(MICRO).values():
        found[result.family, str(result.rung)] = ModelShape(**result.shape)
    return found


def bandwidth(shape: ModelShape) -> float:
    """Seconds per token that grow with the parameters, and a little with the depth."""
    return 1e-9 * count_parameters(shape).params_total * shape.depth**0.2


def launches(shape: ModelShape) -> float:
    return 3e-4 * (shape.depth + 0.2)


def speed_of(
    shape: ModelShape, law: Law, device: str = DEVICE, dtype: str = "fp32", rounds: int = 4
) -> ShapeSpeed:
    """Return a speed by a law, with rounds that differ by a few percent and have its geometric mean."""
    factors = np.exp(0.02 * (np.arange(rounds) - (rounds - 1) / 2))
    seconds = tuple(float(law(shape) * factor) for factor in factors)
    inference = InferenceSpeed(
        batch_size=1,
        prompt_tokens=PROMPT,
        new_tokens=NEW,
        dtype=dtype,
        prefill_seconds=seconds,
        decode_seconds_per_token=seconds,
        peak_memory_bytes=None,
    )
    other = {**asdict(shape), "seq_len": 2 * shape.seq_len}  # does not matter for the match
    rates = tuple(1 / (bandwidth(shape) * float(factor)) for factor in factors)
    return ShapeSpeed(
        shape=other,
        device=device,
        inference=inference,
        train_tokens_per_second=rates,
        train_batch_tokens=256,
        torch="2",
    )


def write(path: Path, speeds: Sequence[ShapeSpeed]) -> Path:
    write_speeds(path, speeds)
    return path


@pytest.fixture(scope="module")
def shapes() -> dict[tuple[str, str], ModelShape]:
    return micro_shapes()


@pytest.fixture(scope="module")
def report(
    shapes: dict[tuple[str, str], ModelShape], tmp_path_factory: pytest.TempPathFactory
) -> StudyReport:
    """The micro study with two devices: on the second one, times are those of kernel launches."""
    speeds = [speed_of(shape, bandwidth) for shape in shapes.values()]
    speeds += [speed_of(shape, launches, "GPU", "bf16") for shape in shapes.values()]
    file = write(tmp_path_factory.mktemp("speeds") / "speed.json", speeds)
    return analyze_study(load_runs(MICRO), bootstrap=0, speed=file)


def at_equal_time(
    report: StudyReport, speeds: Sequence[ShapeSpeed], *, table: pd.DataFrame | None = None
) -> StudyReport:
    """Return the report with other speeds, or with other runs at the same block model."""
    runs = report.table if table is None else table
    found = compare_at_equal_time(runs, report.comparison.block, settings_of(speeds))
    return replace(report, latency=found)


@pytest.fixture(scope="module")
def without(report: StudyReport) -> StudyReport:
    return replace(report, latency=None)


class TestEstimates:
    def test_settings_are_one_per_device_and_dtype_decoding_first(
        self, report: StudyReport
    ) -> None:
        assert report.latency is not None
        found = [(one.setting.quantity, one.setting.device) for one in report.latency.contrasts]
        assert found == [
            (DECODING, DEVICE),
            (DECODING, "GPU"),
            (TRAINING, DEVICE),
            (TRAINING, "GPU"),
        ]
        assert report.latency.decoding is report.latency.contrasts[0]
        assert report.latency.contrasts[1].setting.dtype == "bf16"

    def test_times_of_the_sizes_are_those_of_the_law(
        self, report: StudyReport, shapes: dict[tuple[str, str], ModelShape]
    ) -> None:
        assert report.latency is not None
        for contrast, law in zip(report.latency.contrasts[:2], (bandwidth, launches), strict=True):
            assert len(contrast.sizes) == 6 and not contrast.missing
            for row in contrast.sizes:
                deep, wide = (
                    law(shapes[name, str(row["rung"])]) for name in (contrast.deep, contrast.wide)
                )
                assert row["seconds_deep"] == pytest.approx(deep)
                assert row["ratio"] == pytest.approx(deep / wide)
                # standard error of two means of ln(seconds) over four rounds
                assert row["ln_ratio_se"] == pytest.approx(
                    math.sqrt(2 / 4) * 0.02 * math.sqrt(5 / 3)
                )

    def test_level_is_near_that_at_equal_flops_if_times_hardly_differ(
        self, report: StudyReport
    ) -> None:
        assert report.latency is not None and report.latency.decoding is not None
        level, block = report.latency.decoding.level, report.comparison.block
        assert level is not None and block.level is not None
        # deep is slower at equal FLOPs, so it has fewer parameters at equal time
        assert level.n_deep < level.n_wide and level.level.value > block.level

    def test_no_common_time_is_refused_with_a_bound_and_a_multiplier(
        self, report: StudyReport
    ) -> None:
        assert report.latency is not None
        contrast = report.latency.contrasts[1]
        assert contrast.level is None and contrast.multiplier is not None
        (reason,) = contrast.level_reasons
        assert "no common time, since the smallest measured size of deep_thin" in reason
        assert "train larger sizes of wide_shallow" in reason
        assert contrast.multiplier.log_multiplier.interval[1] < 0

    def test_order_of_runs_and_of_speeds_does_not_matter(
        self, report: StudyReport, shapes: dict[tuple[str, str], ModelShape]
    ) -> None:
        speeds = [speed_of(shape, bandwidth) for shape in reversed(shapes.values())]
        runs = runs_from_results(list(read_results(MICRO).values())[::-1]).table.iloc[::-1]
        block = fit_block_model(runs.reset_index(drop=True), deep="deep_thin", wide="wide_shallow")
        reversed_table = report.table.iloc[::-1]
        assert report.latency is not None
        first = report.latency.contrasts[0]
        second = compare_at_equal_time(reversed_table, block, settings_of(speeds)).contrasts[0]
        for a, b in zip(first.levels, second.levels, strict=True):
            assert b.level.value == pytest.approx(a.level.value, abs=1e-6)
            assert b.level.se == pytest.approx(a.level.se, rel=1e-4)
        for x, y in zip(first.multipliers, second.multipliers, strict=True):
            assert y.log_multiplier.value == pytest.approx(x.log_multiplier.value, abs=1e-6)


class TestFasterLargerShape:
    def test_the_table_names_the_size_that_runs_and_a_note_the_sizes(
        self, report: StudyReport, shapes: dict[tuple[str, str], ModelShape]
    ) -> None:
        deep = {
            int(rung): shape for (family, rung), shape in shapes.items() if family == "deep_thin"
        }
        rungs = sorted(deep)
        fast, smallest = deep[rungs[2]], bandwidth(deep[rungs[0]])

        def law(shape: ModelShape) -> float:
            return smallest / 2 if shape == fast else bandwidth(shape)

        found = at_equal_time(report, [speed_of(shape, law) for shape in shapes.values()])
        assert found.latency is not None
        contrast = found.latency.contrasts[0]
        ((low, high),) = contrast.falls["deep_thin"]
        assert not contrast.falls["wide_shallow"] and low < high
        smaller = [one for one in contrast.multipliers if one.n_deep < 0.999 * high]
        assert smaller and all(one.n_run_deep == pytest.approx(high) for one in smaller)
        assert all(one.seconds_deep == pytest.approx(smallest / 2) for one in smaller)
        others = [one for one in contrast.multipliers if one.n_deep > 1.001 * high]
        assert others and all(one.n_run_deep == one.n_deep for one in others)
        assert all(one.n_run_wide == one.n_wide for one in contrast.multipliers)
        sizes = [
            row["N, deep_thin"]
            for row in latency_text.multiplier_rows(found)
            if row["time"] == DECODING
        ]
        assert sum(f", run as {short_count(high)}" in size for size in sizes) == len(smaller)
        note = f"deep_thin from N = {short_count(low)} to {short_count(high)} (noise"
        assert sum(note in line for line in latency_text.lines(found)) == 1

    def test_times_that_grow_with_size_get_no_note(self, report: StudyReport) -> None:
        assert report.latency is not None
        assert not any(report.latency.contrasts[0].falls.values())
        assert all(
            "run as" not in row["N, deep_thin"]
            for row in latency_text.multiplier_rows(report)
            if row["device"] == DEVICE
        )

    def test_falling_spans_join_and_end_at_equal_times(self) -> None:
        times = [(4.0, 1.0), (1.0, 3.0), (2.0, 2.0), (8.0, 1.0), (16.0, 5.0), (32.0, 4.0)]
        assert falling_spans(times) == [(1.0, 4.0), (16.0, 32.0)]
        assert falling_spans([(1.0, 2.0), (1.0, 1.0), (2.0, 3.0)]) == []


class TestMissing:
    def test_missing_shapes_are_named_and_the_others_used(
        self, report: StudyReport, shapes: dict[tuple[str, str], ModelShape]
    ) -> None:
        left_out = ("deep_thin", "50000"), ("balanced", "25000")
        speeds = [speed_of(s, bandwidth) for key, s in shapes.items() if key not in left_out]
        found = at_equal_time(report, speeds)
        assert found.latency is not None
        contrast = found.latency.contrasts[0]
        assert contrast.missing == (f"deep_thin {shapes[left_out[0]].label}",)
        assert contrast.level is not None and len(contrast.sizes) == 5
        lines = latency_text.lines(found)
        assert any(line.startswith("1 shape without a measured decode latency") for line in lines)
        assert len(found.latency.shapes) == 16

    def test_one_size_in_a_family_is_refused(
        self, report: StudyReport, shapes: dict[tuple[str, str], ModelShape]
    ) -> None:
        kept = [key for key in shapes if key[0] != "deep_thin" or key[1] == "50000"]
        found = at_equal_time(report, [speed_of(shapes[key], bandwidth, rounds=1) for key in kept])
        assert found.latency is not None
        assert found.latency.contrasts[0].reasons == (
            "deep_thin has 1 measured size, at least 2 are needed in each family",
        )
        lines = latency_text.lines(found)
        assert sum("REFUSED: deep_thin has 1 measured size" in line for line in lines) == 1
        assert any("measured in one round" in line for line in lines)
        assert latency_text.rows(found)[1]["loss difference, nats/token [95% CI]"] == "refused"

    def test_speeds_of_other_shapes_are_refused(
        self, report: StudyReport, shapes: dict[tuple[str, str], ModelShape]
    ) -> None:
        others = [replace(shape, vocab_size=7) for shape in shapes.values()]
        found = at_equal_time(report, [speed_of(shape, bandwidth) for shape in others])
        assert found.latency is not None and found.latency.shapes == ()
        assert "deep_thin has 0 measured sizes" in found.latency.contrasts[0].reasons[0]
        assert pareto_figures(found) == []

    def test_one_token_budget_is_refused(
        self, report: StudyReport, shapes: dict[tuple[str, str], ModelShape]
    ) -> None:
        table = report.table
        table = table[table["tokens_per_param"] == table["tokens_per_param"].max()]
        block = fit_block_model(table, deep="deep_thin", wide="wide_shallow", n="n")
        speeds = [speed_of(shape, bandwidth) for shape in shapes.values()]
        (reason,) = compare_at_equal_time(table, block, settings_of(speeds)).contrasts[0].reasons
        assert "train several token budgets per size" in reason

    def test_a_refusal_at_equal_flops_is_not_repeated_per_setting(
        self, report: StudyReport, shapes: dict[tuple[str, str], ModelShape]
    ) -> None:
        deep, wide = report.comparison.deep, report.comparison.wide
        few = report.table[report.table["rung"] == report.table["rung"].iloc[0]]
        block = fit_block_model(few, deep=deep, wide=wide, n="n")
        assert block.refused
        refused = replace(report, comparison=replace(report.comparison, block=block))
        speeds = [speed_of(s, bandwidth, device) for s in shapes.values() for device in ("a", "b")]
        lines = latency_text.contrast_lines(at_equal_time(refused, speeds))
        assert (
            lines[0]
            == "At equal latency and training time: refused for the same reason as at equal FLOPs."
        )
        assert len(lines) == 3 and not any("REFUSED" in line for line in lines)
        assert "times as long as wide_shallow per generated token (range over 6 sizes: " in lines[1]
        assert "times as long as wide_shallow per training token" in lines[2]

    def test_tables_of_others_have_no_shapes_to_match(
        self, report: StudyReport, shapes: dict[tuple[str, str], ModelShape]
    ) -> None:
        speeds = [speed_of(shape, bandwidth) for shape in shapes.values()]
        found = at_equal_time(report, speeds, table=report.table.drop(columns="model_shape"))
        assert found.latency is not None and not found.latency.contrasts
        assert "this table has no shapes of slm" in latency_text.lines(found)[0]
        assert pareto_figures(found) == []

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda one: one["inference"].update(decode_seconds_per_token=[0.1, -1.0]), "-1.0. must be a list of numbers above 0"),
            (lambda one: one["inference"].update(decode_seconds_per_token=["a"]), r"seconds_per_token=\[.a.\] must be a list of numbers above 0"),
            (lambda one: one["inference"].update(decode_seconds_per_token=[]), "must be a list of numbers above 0"),
            (lambda one: one["inference"].update(dtype="fp8"), "dtype='fp8' must be fp32 or bf16"),
            (lambda one: one["shape"].pop("d_head"), "shape has no d_head"),
            (lambda one: one.update(train_tokens_per_second=[0]), r"=\[0\] must be a list of numbers above 0"),
            (lambda one: one.update(inference=None, train_tokens_per_second=[]), "no measured speeds"),
            (lambda one: one.pop("device"), "has no device"),
        ],
    )  # fmt: skip
    def test_a_damaged_file_is_one_error(
        self,
        damage: Callable[[dict[str, Any]], object],
        message: str,
        shapes: dict[tuple[str, str], ModelShape],
        tmp_path: Path,
    ) -> None:
        file = write(tmp_path / "speed.json", [speed_of(next(iter(shapes.values())), bandwidth)])
        content = json.loads(file.read_text())
        damage(content["speeds"][0])
        file.write_text(json.dumps(content))
        with pytest.raises(DataError, match=message) as error:
            load_settings(file)
        assert "measure again with python -m slm speed" in str(error.value)
        assert str(file) in str(error.value)


class TestReport:
    def test_page_markdown_and_results_agree(self, report: StudyReport) -> None:
        html = Page(page(report))
        shown, read = markdown(report), html.text.replace("\N{MINUS SIGN}", "-")
        for line in latency_text.lines(report):
            assert line in shown and line in read
        assert {"pareto_latency", "pareto_memory", "pareto_flops"} < set(html.figures)
        assert html.figures == [figure.name for figure in report_figures(report)]
        saved = json.loads(json.dumps(results(report), allow_nan=False))
        settings = saved["latency"]["settings"]
        assert [one["device"] for one in settings] == [DEVICE, "GPU", DEVICE, "GPU"]
        level = settings[0]["levels"][0]
        assert level["level_ci"][0] < level["level"] < level["level_ci"][1]
        assert f"{level['level']:+.4f} [" in shown
        assert settings[1]["levels"] == [] and settings[1]["level_reasons"]
        assert len(saved["latency"]["shapes"]) == 18
        conditions = f"{DEVICE}, fp32, batch size 1, prompt of {PROMPT} tokens, {NEW} new tokens"
        assert f"Loss difference at equal decode latency ({conditions})" in shown

    def test_without_a_file_one_line_names_the_command(self, without: StudyReport) -> None:
        shown = markdown(without)
        assert "equal latency and training time" not in shown
        assert shown.count("python -m slm speed study=NAME") == 1
        assert results(without)["latency"] is None
        assert len(text.caveats(without)) == len(text.CAVEATS)
        assert not any(figure.name.startswith("pareto") for figure in report_figures(without))

    def test_the_rest_of_the_report_does_not_change(
        self, report: StudyReport, without: StudyReport
    ) -> None:
        both = [{one.name for one in sections(each)} for each in (report, without)]
        assert both[0] - both[1] == {"latency"}
        saved = [results(each) for each in (report, without)]
        assert saved[0]["comparison"] == saved[1]["comparison"]
        assert saved[0]["headline"] == saved[1]["headline"]

    @pytest.mark.slow
    def test_command_takes_a_file(
        self,
        shapes: dict[tuple[str, str], ModelShape],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        file = write(tmp_path / "mine.json", [speed_of(s, bandwidth) for s in shapes.values()])
        assert run_main(MICRO, tmp_path / "out", "--speed", file) == 0
        assert "Loss difference at equal decode latency" in capsys.readouterr().out
        assert "At equal latency" in (tmp_path / "out" / "report.md").read_text()

    def test_command_names_a_missing_file_and_finds_the_one_beside_the_runs(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run_main(MICRO, tmp_path / "out", "--speed", tmp_path / "none.json") == 1
        assert "none.json: no such file; measure it with" in capsys.readouterr().err
        shutil.copytree(FINISHED, tmp_path / "runs" / FINISHED.name)
        (tmp_path / "runs" / "speed.json").write_text("{}")
        assert run_main(tmp_path / "runs", tmp_path / "out") == 1
        assert "speed.json: not readable" in capsys.readouterr().err


class TestCharts:
    def test_charts_show_every_measured_shape_at_one_budget(self, report: StudyReport) -> None:
        figures = pareto_figures(report)
        assert [figure.name for figure in figures] == [
            "pareto_latency", "pareto_memory", "pareto_flops",
        ]  # fmt: skip
        budget = report.table["tokens_per_param"].max()
        losses = report.table[report.table["tokens_per_param"] == budget]["loss_nats_per_token"]
        for figure in figures:
            rows = [row for row in values(figure) if "tip_0" in row]
            assert sorted({row["y"] for row in rows}) == pytest.approx(sorted(losses))
            assert f"tokens_per_param {budget:g}" in figure.caption
        assert DEVICE in figures[0].caption and "not the memory of a process" in figures[1].caption

    def test_frontier_has_the_shapes_that_no_other_beats(self) -> None:
        rows = [
            {"x": x, "y": y} for x, y in [(1, 5), (2, 6), (3, 4), (3.05, 3.9), (9, 4.5), (8, 1)]
        ]
        # 3 and 3.05 are equal within 3%, so the lower loss counts
        assert [(row["x"], row["y"]) for row in pareto_front(rows)] == [(1, 5), (3.05, 3.9), (8, 1)]


class TestMemory:
    SHAPE = ModelShape(
        n_layers=2, d_model=8, n_heads=2, n_kv_heads=1, d_head=4, d_ff=16, vocab_size=10, seq_len=32
    )

    def test_cache_and_weights(self) -> None:
        # keys and values of 2 layers, 1 head of 4 numbers
        assert (
            kv_cache_bytes(self.SHAPE, tokens=5, batch_size=3, dtype="bf16")
            == 2 * 2 * 4 * 5 * 3 * 2
        )
        weights = 4 * count_parameters(self.SHAPE).params_total
        assert (
            decoding_memory_bytes(self.SHAPE, tokens=1, batch_size=1, dtype="fp32") == weights + 64
        )

    def test_a_tied_table_is_read_as_the_head_and_an_input_table_is_not_read(self) -> None:
        read = [
            bytes_read_per_token(
                replace(self.SHAPE, tied=tied), tokens=0, batch_size=1, dtype="fp32"
            )
            for tied in (True, False)
        ]
        assert read[0] == read[1] == 4 * count_parameters(self.SHAPE).params_total

    def test_shared_layers_are_read_once_per_pass_and_stored_once(self) -> None:
        shared = replace(self.SHAPE, layer_sharing=3)
        counts = count_parameters(shared)
        blocks = counts.params_non_embedding - 8  # without the last norm
        read = bytes_read_per_token(shared, tokens=0, batch_size=1, dtype="fp32")
        assert read == 4 * (3 * blocks + 8 + 10 * 8)
        assert kv_cache_bytes(shared, tokens=1, batch_size=1, dtype="fp32") == 3 * 64
