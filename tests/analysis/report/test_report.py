"""Content of report.html, report.md and results.json for identified, unidentified and refused studies."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.charts import report_figures
from analysis.formatting import power_of_ten
from analysis.learning_rate.gate import load_audit
from analysis.report import tables, text
from analysis.report.html import page
from analysis.report.sections import sections
from analysis.report.study_report import StudyReport, analyze_study
from analysis.report.write import markdown, markdown_table, report_on, results
from analysis.runs.load import Runs, load_runs, runs_from_results
from slm.charts import LossCurve, page_script
from slm.errors import DataError
from slm.formatting import short_count
from slm.tracking.results_file import read_results
from tests.conftest import ROOT
from tests.full_study import full_study

pytestmark = pytest.mark.numeric

VOID_TAGS = {"meta", "link", "br"}
SHIPPED = ROOT / "analysis" / "notebooks" / "data"
MICRO = SHIPPED.parents[1] / "examples" / "micro_first" / "results.jsonl"


class Page(HTMLParser):
    """Parsed report.html: visible text, ids of figures, and URLs. Parsing checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.texts: list[str] = []
        self.figures: list[str] = []
        self.urls: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open_tags

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {key: value or "" for key, value in attrs}
        self.urls += [attributes[key] for key in ("src", "href", "data") if key in attributes]
        if tag == "figure":
            self.figures.append(attributes["id"])
        if tag not in VOID_TAGS:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID_TAGS

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open_tags[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.open_tags[-1:] not in ([], ["style"]):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


@pytest.fixture(scope="module")
def identified() -> StudyReport:
    table = full_study(alpha={"deep_thin": 0.02, "wide_shallow": -0.02}, anchor_seeds=1)
    return analyze_study(table, question="Deep or wide?", bootstrap=0)


@pytest.fixture(scope="module")
def unidentified() -> StudyReport:
    """Real runs of one family under two labels, too few and too small to identify an exponent."""
    return analyze_study(load_runs(SHIPPED / "aa.jsonl"), bootstrap=0)


def test_page_of_an_identified_study(identified: StudyReport) -> None:
    html = page(identified)
    read = Page(html)
    assert text.headline(identified) in read.text and "Deep or wide?" in read.text
    block = identified.comparison.block
    assert block.d_alpha is not None and f"+{block.d_alpha:.4f} [" in read.text
    for condition in identified.comparison.verdict.conditions:
        assert condition in read.text
    assert read.figures == [figure.name for figure in report_figures(identified)]
    assert read.figures == [
        "loss_against_flops", "level", "shape_curve", "exponent_difference", "influence_level",
        "influence_exponent", "residuals",
    ]  # fmt: skip
    assert len(read.scripts) == 9  # the library, and what draws the charts
    for run_id in identified.table["run_id"]:
        assert html.count(run_id) >= 2  # in the tooltip of a chart, and in the table
    assert html.count(page_script()) == 1 and len(html) < len(page_script()) + 400_000


def test_family_with_too_few_sizes_has_no_curve_of_the_joint_law(identified: StudyReport) -> None:
    table = identified.table
    sizes = sorted(table["rung"].unique())
    is_small = (table["family"] == "balanced") & ~table["rung"].isin(sizes[:3])
    report = analyze_study(table[~is_small].reset_index(drop=True), bootstrap=0)
    assert {curve.family for curve in report.curves} == {"deep_thin", "wide_shallow"}
    assert "balanced: 3 sizes, at least 4 are needed" in Page(page(report)).text


def test_headline_names_both_findings(identified: StudyReport) -> None:
    def shown(level: str, exponent: str, word: str = "inconclusive") -> str:
        verdict = replace(identified.comparison.verdict, word=word, level=level, exponent=exponent)  # type: ignore[arg-type]
        return text.headline(
            replace(identified, comparison=replace(identified.comparison, verdict=verdict))
        )

    start = "deep_thin beats wide_shallow at equal compute"
    assert shown("depth", "open") == start
    assert shown("depth", "depth") == f"{start}, and its loss falls faster with size"
    assert (
        shown("depth", "width") == f"{start}, but the loss of wide_shallow falls faster with size"
    )
    assert shown("open", "width").startswith("The loss of wide_shallow falls faster")
    assert shown("open", "open").startswith("No significant difference")


def test_significant_joint_test_alone_is_reported(identified: StudyReport) -> None:
    def report_with(p_f: float) -> StudyReport:
        block = replace(identified.comparison.block, p_f=p_f, p_level=0.2, p_exponent=0.3)
        verdict = replace(
            identified.comparison.verdict, word="inconclusive", level="open", exponent="open"
        )
        return replace(
            identified, comparison=replace(identified.comparison, block=block, verdict=verdict)
        )

    shown, not_shown = report_with(0.004), report_with(0.2)
    first = identified.comparison.block.curve[0]
    line = text.findings(shown)[1]
    assert "joint test of both finds a difference (p 0.004)" in line
    assert f"{first['level']:+.4f} [{first['low']:+.4f}, {first['high']:+.4f}]" in line
    assert "differ jointly, but neither" in text.headline(shown)
    assert text.headline(not_shown).startswith("No significant difference")
    assert not any("joint test" in each for each in text.findings(not_shown))


def test_page_loads_nothing_from_the_network(identified: StudyReport) -> None:
    html = page(identified)
    urls = Page(html).urls
    assert "data:," in urls and all(url == "data:," or url.startswith("#") for url in urls)
    own = html.replace(page_script(), "")
    assert not re.search(r"url\(|@import|<script[^>]+src", own)
    assert set(re.findall(r"https?:[^\"]*", own)) == {json_schema(identified)}


def json_schema(report: StudyReport) -> str:
    """Return the name of the Vega-Lite version in the specifications, which is not loaded."""
    return str(report_figures(report)[0].spec()["$schema"])


def test_links_of_the_page_lead_to_its_sections(identified: StudyReport) -> None:
    html = page(identified)
    targets = [url[1:] for url in Page(html).urls if url.startswith("#")]
    assert len(targets) == 9 and all(html.count(f'id="{target}"') == 1 for target in targets)


def test_results_json_is_complete_and_has_plain_values(identified: StudyReport) -> None:
    saved = json.loads(json.dumps(results(identified), allow_nan=False))
    assert saved["schema_version"] == 8 and saved["runs"] == len(identified.table)
    verdict, block = saved["comparison"]["verdict"], saved["comparison"]["block"]
    assert verdict["level"] == "depth" and verdict["word"] == "depth_level_better"
    assert block["level_ci"][0] < block["level"] < block["level_ci"][1] < 0
    assert saved["findings"][0] == verdict["sentence"]
    assert saved["conditions"] == verdict["conditions"]
    assert {row["run_id"] for row in saved["residuals"]} == set(identified.table["run_id"])
    assert {(one["deep"], one["wide"]) for one in saved["other_contrasts"]} == {
        ("deep_thin", "balanced"),
        ("balanced", "wide_shallow"),
    }
    assert saved["power"]["mde80_exponent"] > 0 and len(saved["next_runs"]) == 5
    errors = {row["name"]: row["se_exponent"] for row in saved["extensions"]}
    assert len(errors) == 5
    assert all(error < saved["power"]["se_exponent"] for error in errors.values())


def test_losses_are_means_over_seeds_of_every_family(identified: StudyReport) -> None:
    assert len(identified.losses) == 24
    cell = identified.losses[0]
    runs = identified.table[
        (identified.table["rung"] == cell["rung"]) & (identified.table["tokens"] == cell["tokens"])
    ]
    assert cell["n"] == pytest.approx(runs["n"].mean()) and runs["seed"].nunique() == 2
    for family in ("deep_thin", "balanced", "wide_shallow"):
        mean = runs[runs["family"] == family]["loss_nats_per_token"].mean()
        assert cell["families"][family] == pytest.approx(mean)
    row = tables.loss_rows(identified)[0]
    lowest = min(cell["families"], key=cell["families"].__getitem__)
    assert [name for name in identified.families if row[name].startswith("* ")] == [lowest]
    assert row["deep_thin - wide_shallow at equal FLOPs"] == f"{cell['difference']:+.4f}"


def test_markdown_has_the_results_of_the_page(identified: StudyReport) -> None:
    shown, read = markdown(identified), Page(page(identified)).text.replace("\N{MINUS SIGN}", "-")
    lines = [line for section in sections(identified) for line in section.lines]
    for expected in (
        text.headline(identified),
        identified.comparison.verdict.sentence,
        "loss in nats against n_flop",
        "the families with the smallest and the largest d_model / n_layers",
        "Other families in these runs: balanced",
        "Hold-out: Passed",
        "No learning-rate audit was given",
        *lines,
    ):
        assert expected in shown and expected in read


def test_loss_curves_are_in_the_page_if_the_runs_have_directories(identified: StudyReport) -> None:
    family = identified.families[0]
    curve = LossCurve("run-1", f"{family} 50k, s0", family, 6e5, [1e3, 2e3, 3e3], [4.0, 3.0, 2.5])
    report = replace(identified, loss_curves=(curve,))
    shown = Page(page(report))
    assert {"loss_curves", "loss_curves_flops"} < set(
        shown.figures
    ) and "Loss curves" in shown.texts
    assert markdown(report) == markdown(identified)
    without = Page(page(identified))
    assert "loss_curves" not in without.figures and "Loss curves" not in without.texts


def test_confidence_bands_of_curves_contain_the_true_law(identified: StudyReport) -> None:
    truth = {"E": 1.8172, "B": 2085.43, "beta": 0.3658}
    assert len(identified.curves) == 9
    inside = []
    for curve in identified.curves:
        assert curve.low is not None and curve.high is not None
        assert (curve.low < curve.loss).all() and (curve.loss < curve.high).all()
        if curve.family == "balanced":
            n = (curve.flops / 6 / curve.tokens_per_param) ** 0.5
            loss = (
                truth["E"]
                + 482.01 * n**-0.3478
                + truth["B"] * (curve.tokens_per_param * n) ** -truth["beta"]
            )
            inside += list((curve.low < loss) & (loss < curve.high))
    assert sum(inside) / len(inside) > 0.7


def test_unidentified_joint_law_is_given_as_a_range_only(unidentified: StudyReport) -> None:
    exponents = unidentified.comparison.exponents
    assert exponents.status == "UNIDENTIFIED" and exponents.difference is not None
    for shown in (Page(page(unidentified)).text, markdown(unidentified)):
        assert "not identified" in shown and "is accepted" in shown
        assert exponents.reasons[0] in shown and f"{abs(exponents.difference):.4f}" not in shown
    assert {curve.family for curve in unidentified.curves} == {None}  # the pooled law instead


def test_level_is_reported_when_exponents_are_refused() -> None:
    table = full_study(
        families=("deep_thin", "wide_shallow"), tokens_per_param=(8.0,), level={"deep_thin": -0.1}
    )
    report = analyze_study(table, bootstrap=0)
    read, shown, saved = Page(page(report)), markdown(report), results(report)
    assert saved["comparison"]["verdict"]["level"] == "depth"
    assert {"level", "influence_level"} < set(read.figures)
    assert not {"exponent_difference", "influence_exponent"} & set(read.figures)
    for one in (read.text, shown):
        assert "exponents cannot be compared" in one and "single token budget" in one
    assert saved["comparison"]["block"]["d_alpha"] is None
    assert saved["power"]["se_exponent"] is None
    level = saved["power"]["se_level"]
    assert saved["next_runs"] and all(one["se"] < level for one in saved["next_runs"])


@pytest.mark.parametrize("runs", [1, 2])
def test_report_of_one_or_two_runs(runs: int) -> None:
    report = analyze_study(
        full_study(families=("deep_thin", "wide_shallow")).groupby("family").head(1)[:runs]
    )
    read = Page(page(report))
    assert report.comparison.verdict.word == "refused"
    assert not any("interval" in line for line in text.caveats(report))
    pair = {"level"} if runs == 2 else set()
    assert "at equal FLOPs" not in " ".join([*tables.loss_rows(report)[0], *text.findings(report)])
    assert set(read.figures) == {"loss_against_flops"} | pair
    assert ("No verdict: 1 pair of" if runs == 2 else "No comparison") in read.text


def test_report_of_one_family() -> None:
    report = analyze_study(full_study(families=("balanced",)))
    read = Page(page(report))
    assert "No comparison" in read.text and "run a second family" in read.text
    assert report.power is None and set(read.figures) == {"loss_against_flops"}
    assert "No comparison" in markdown(report)


def test_failed_learning_rate_audit_prevents_a_verdict() -> None:
    audit = {
        "deep_thin": {"interior": True, "penalty": 0.001},
        "wide_shallow": {"interior": True, "penalty": 0.05},
    }
    table = full_study(level={"wide_shallow": 0.1}, families=("deep_thin", "wide_shallow"))
    report = analyze_study(table, audit=audit, bootstrap=0)
    read = Page(page(report)).text
    assert "No verdict: the learning-rate audit failed" in read
    assert "wide_shallow: its learning rate costs 0.050 nats" in read


def isoflop_study() -> pd.DataFrame:
    """Two families with 9 sizes around the optimum at each of 6 compute budgets."""
    rows = []
    for family, level in (("deep", 1.0), ("wide", 1.02)):
        for flops in np.geomspace(1e17, 1e20, 6):
            best = 0.13 * flops**0.48
            for n in best * np.geomspace(1 / 3, 3, 9):
                tokens = flops / (6 * n)
                loss = 1.8172 + 482.01 * level * n**-0.3478 + 2085.43 * tokens**-0.3658
                rows.append((family, f"N{n:.4g}", n, tokens, flops, loss))
    return pd.DataFrame(
        rows, columns=["family", "shape", "n_flop", "tokens", "flops", "loss_nats_per_token"]
    )


def test_isoflop_design_has_an_isoflop_table() -> None:
    report = analyze_study(isoflop_study(), bootstrap=0)
    assert set(report.isoflop) == {"deep", "wide"}
    assert all(fit.exponent == pytest.approx(0.51, abs=0.03) for fit in report.isoflop.values())
    read = Page(page(report))
    assert "IsoFLOP, wide" in read.text and "exponent [95% CI]: 0.5" in read.text


def test_family_names_are_escaped_in_html() -> None:
    table = full_study(families=("deep_thin", "wide_shallow")).replace(
        {"family": {"deep_thin": "<b>deep</b> & thin"}}
    )
    report = analyze_study(table, deep="<b>deep</b> & thin", wide="wide_shallow", bootstrap=0)
    html = page(report)
    assert "<b>deep" not in html and "&lt;b&gt;deep&lt;/b&gt; &amp; thin" in html
    specs = [json.loads(script) for script in Page(html).scripts if script.startswith("{")]
    assert len(specs) == len(report_figures(report)) and "<b>deep</b> & thin" in str(specs)


def test_bars_in_names_do_not_split_cells_of_markdown() -> None:
    assert markdown_table([{"a|b": "1", "c": "x|y\nz"}]) == [
        "| a\\|b | c |",
        "| --- | --- |",
        "| 1 | x\\|y z |",
    ]


def test_end_tags_in_names_do_not_end_a_script() -> None:
    name = "deep</script><script>alert(1)</script>"
    table = full_study(families=("deep_thin", "wide_shallow"), sizes=(1e7, 1e8))
    table = table.replace({"family": {"deep_thin": name}})
    report = analyze_study(table, deep=name, wide="wide_shallow", bootstrap=0)
    read = Page(page(report))
    assert len(read.scripts) == len(report_figures(report)) + 2
    assert any(name in json.dumps(json.loads(script)) for script in read.scripts[:-2])


def test_csv_table_needs_only_five_columns(tmp_path: Path) -> None:
    table = full_study(families=("deep_thin", "wide_shallow"), anchor_seeds=0)
    file = tmp_path / "runs.csv"
    table[["family", "shape", "n_flop", "tokens", "loss_nats_per_token"]].to_csv(file, index=False)
    assert run_main(file, tmp_path / "out", "--deep", "deep_thin", "--wide", "wide_shallow") == 0
    html = (tmp_path / "out" / "report.html").read_text()
    assert "row 0" in html and "row 47" in html
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"report.html", "report.md", "results.json", "loss_vs_flops.png"}


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("seed", math.nan, "seed: no label in row 3"),
        ("aspect_ratio", "abc", "aspect_ratio: values must be numbers"),
    ],
)
def test_bad_cell_of_an_optional_column_is_an_error(
    column: str, value: object, message: str
) -> None:
    table = full_study(families=("deep_thin", "wide_shallow"), anchor_seeds=0)
    table[column] = table[column].astype(object)
    table.loc[3, column] = value
    with pytest.raises(DataError, match=message):
        analyze_study(table, bootstrap=0)


def run_main(*arguments: object) -> int:
    import sys
    from unittest.mock import patch

    source, out, *options = arguments
    with patch.object(
        sys, "argv", ["analysis", str(source), "--out", str(out), *map(str, options)]
    ):
        return main()


def test_perplexities_and_nan_losses_are_errors(tmp_path: Path) -> None:
    table = full_study(families=("deep_thin", "wide_shallow"))
    table["loss_nats_per_token"] = table["loss_nats_per_token"].map(math.exp)
    with pytest.raises(DataError, match="perplexities"):
        report_on(table, tmp_path)
    table["loss_nats_per_token"] = math.nan
    with pytest.raises(DataError, match="not finite"):
        report_on(table, tmp_path)


def test_runs_are_loaded_from_a_results_file() -> None:
    runs = load_runs(MICRO)
    recorded = read_results(MICRO)
    assert len(runs.table) + sum(runs.dropped.values()) == len(recorded)
    some = runs_from_results(recorded.values(), only=set(runs.table["run_id"][:5]))
    assert len(some.table) == 5
    with pytest.raises(DataError, match="no finished run"):
        runs_from_results([])


def test_audit_is_loaded_from_lr_audit_json(tmp_path: Path) -> None:
    runs = Runs(pd.DataFrame(), analyze_study(full_study(families=("balanced",))).dropped, ())
    file = tmp_path / "lr_audit.json"
    file.write_text(
        json.dumps({"recipe_id": "r", "families": {"deep": {"interior": False, "penalty": None}}})
    )
    assert "deep" in asdict(load_audit(file, runs))["failed"]
    with pytest.raises(DataError, match=r"no such file or folder .* study\.lr_audit=null"):
        load_audit(tmp_path / "nowhere.json", runs)


def test_number_formats() -> None:
    assert power_of_ten(4.3e19) == "4.3·10¹⁹" and power_of_ten(1e-3) == "10⁻³"
    assert [short_count(n) for n in (950, 25_000, 3.16e8)] == ["950", "25k", "316M"]
