"""Chart theme, encodings and rendering: colours, axes, files, pages and notebooks."""

from __future__ import annotations

import base64
import json
import math
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from slm.charts import (
    DARK,
    LIGHT,
    Axis,
    Figure,
    Series,
    css_variables,
    forest,
    intervals,
    layered,
    lines,
    literal,
    page_script,
    panels,
    points,
    rule,
    script_json,
)

SPECIAL = ("a\"<b>&'\\", "x.y[0]", "</script><!--", "\N{GREEK SMALL LETTER ALPHA} [c]")


def chart(names: tuple[str, ...] = ("deep", "wide"), *, interactive: bool = True) -> Any:
    """Return a chart with lines and points, four points per series."""
    series = Series(names, interactive=interactive)
    rows = [
        {
            "x": 10.0**k,
            "y": 4 - 0.3 * k - 0.1 * n,
            "series": name,
            "group": name,
            "run": f"{name}-{k}",
        }
        for n, name in enumerate(names)
        for k in range(4)
    ]
    x = Axis.around([row["x"] for row in rows], "FLOPs", log=True, kind="flops")
    y = Axis.around([row["y"] for row in rows], "loss (nats/token)")
    marks = points(rows, x, y, series, {"run": "run id"})
    return layered(rule(y=3.5), lines(rows, x, y, series), marks, series=series)


def figure(*names: str) -> Figure:
    return Figure("name", "Title", "A caption.", chart(names or ("deep", "wide")))


def contrast(colour: str, paper: str) -> float:
    """Return the contrast ratio of two colours as defined by WCAG 2."""

    def luminance(value: str) -> float:
        channels = [int(value[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(colour), luminance(paper)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_colours_of_marks_and_text_are_visible_on_the_paper(colours: dict[str, str]) -> None:
    for name, colour in colours.items():
        if name.startswith(("series", "budget")):
            assert contrast(colour, colours["paper"]) >= 3, name
        if name in ("ink", "muted"):
            assert contrast(colour, colours["paper"]) >= 4.5, name


def test_budget_colours_gain_contrast_with_the_budget() -> None:
    for colours in (LIGHT, DARK):
        ramp = [contrast(colours[f"budget-{k}"], colours["paper"]) for k in range(1, 9)]
        assert ramp == sorted(ramp)


def test_css_defines_every_colour_in_light_dark_and_print() -> None:
    light, dark, printed = css_variables().strip().split("\n")
    assert LIGHT.keys() == DARK.keys()
    assert "prefers-color-scheme:dark" in dark and "@media print" in printed
    for text, colours in ((light, LIGHT), (dark, DARK), (printed, LIGHT)):
        assert dict(re.findall(r"--([\w-]+):(#\w+);", text)) == colours


def test_page_spec_uses_only_defined_variables_and_the_width_of_its_element() -> None:
    spec = figure().spec()
    used = set(re.findall(r"var\(--([\w-]+)\)", json.dumps(spec)))
    assert {"series-1", "series-2", "ink", "grid"} <= used <= LIGHT.keys()
    assert spec["width"] == "container"


@pytest.mark.parametrize(("theme", "colours"), [("light", LIGHT), ("dark", DARK)])
def test_files_have_literal_colours(theme: Any, colours: dict[str, str], tmp_path: Path) -> None:
    figure().save(tmp_path / "chart.svg", theme)
    svg = (tmp_path / "chart.svg").read_text()
    assert "var(" not in svg and "Title" in svg
    for name in ("paper", "ink", "series-1", "series-2"):
        assert colours[name] in svg
    assert svg.count('aria-roledescription="point"') == 8


def decoded(png: bytes) -> tuple[int, bytes]:
    """Return the width of a PNG file and its filtered pixels."""
    at, width, packed = 8, 0, b""
    while at < len(png):
        (size,), kind = struct.unpack(">I", png[at : at + 4]), png[at + 4 : at + 8]
        content = png[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            (width,) = struct.unpack(">I", content[:4])
        packed += content if kind == b"IDAT" else b""
        at += size + 12
    return width, zlib.decompress(packed)


def test_png_is_not_blank_and_is_larger_than_a_page_of_300_pixels(tmp_path: Path) -> None:
    figure().save(tmp_path / "chart.png")
    width, pixels = decoded((tmp_path / "chart.png").read_bytes())
    assert width > 1080 and len(set(pixels)) > 50


def test_notebook_output_has_a_picture_and_an_interactive_chart() -> None:
    output = figure()._repr_mimebundle_()
    assert output["text/plain"] == "Figure('name': Title)"
    assert decoded(base64.b64decode(output["image/png"]))[0] > 540
    spec = output["application/vnd.vegalite.v6+json"]
    assert spec["title"]["subtitle"] == ["A caption."] and "var(" not in json.dumps(spec)
    assert len(json.dumps(output)) < 150_000


def test_series_names_with_special_characters_are_drawn_as_they_are(tmp_path: Path) -> None:
    one = figure(*SPECIAL)
    embedded = script_json(one.spec())
    assert not set("<>&") & set(embedded) and json.loads(embedded) == one.spec()
    one.save(tmp_path / "chart.svg")
    svg = (tmp_path / "chart.svg").read_text()
    assert svg.count('aria-roledescription="point"') == 4 * len(SPECIAL)
    assert "x.y[0]" in svg and "<b>" not in svg


def axis_labels(axis: Axis, tmp_path: Path) -> list[str]:
    """Return the tick labels of an axis as drawn."""
    ends = [{"x": x, "y": 0, "series": "s", "group": "s"} for x in (axis.low, axis.high)]
    marks = points(ends, axis, Axis("", -1, 1), Series(("s",)), {})
    Figure("axis", "", "", layered(marks)).save(tmp_path / "axis.svg")
    svg = (tmp_path / "axis.svg").read_text()
    labels = svg[svg.index("role-axis-label") : svg.index("role-axis-domain")]
    return [text for text in re.findall(r"<text[^>]*>([^<]*)</text>", labels) if text]


def test_tick_labels(tmp_path: Path) -> None:
    flops = Axis.around([3e17, 4e20], "", log=True, kind="flops")
    assert axis_labels(flops, tmp_path) == ["10¹⁸", "10¹⁹", "10²⁰"]
    assert axis_labels(Axis("", 9e16, 1.2e18, log=True, kind="flops"), tmp_path) == [
        "10¹⁷", "2·10¹⁷", "5·10¹⁷", "10¹⁸",
    ]  # fmt: skip
    assert axis_labels(Axis("", 2e7, 3e9, log=True, kind="count"), tmp_path) == [
        "30M", "100M", "300M", "1B", "3B",
    ]  # fmt: skip
    assert axis_labels(Axis("", 2.9, 4.1, log=True), tmp_path)[:2] == ["3", "3.2"]
    rates = Axis("", 9e-4, 5e-3, log=True, kind="scientific", ticks=(1e-3, 2e-3, 4e-3))
    assert axis_labels(rates, tmp_path) == ["1e-3", "2e-3", "4e-3"]


@pytest.mark.parametrize("values", [[], [3.0], [3.0, 3.0], [0.0, None], [math.nan, math.inf, 2.0]])
@pytest.mark.parametrize("log", [False, True])
def test_axis_of_few_values_has_a_range(values: list[float | None], log: bool) -> None:
    axis = Axis.around(values, "", log=log)
    assert math.isfinite(axis.low) and math.isfinite(axis.high) and axis.low < axis.high
    assert axis.clip(math.inf) == axis.high and axis.clip(-math.inf) == axis.low


def test_shares_of_a_logarithmic_axis() -> None:
    axis = Axis("", 1.0, 100.0, log=True)
    assert axis.share(0.5) == pytest.approx(10)
    assert axis.extended(0.5, 0.5).low == pytest.approx(0.1)


def test_styles_of_series_are_stable_and_distinct() -> None:
    series = Series(tuple(f"family {index}" for index in range(6)))
    styles = {(series.colour(name), series.shape(name)) for name in series.names}
    assert len(styles) == 6
    assert Series(("a", "b", "c")).colour("b") == Series(("z", "b")).colour("b")
    budgets = Series(tuple(map(str, range(10))), is_ordered=True)
    numbers = [int(re.sub(r"\D", "", budgets.colour(name))) for name in budgets.names]
    assert numbers == sorted(numbers) and (numbers[0], numbers[-1]) == (1, 8)
    assert Series(("8",), is_ordered=True).colour("8") == "var(--budget-8)"


def test_wheel_and_drag_need_a_modifier_key_so_that_the_wheel_scrolls_the_page() -> None:
    params = {param["name"]: param["select"] for param in figure().spec()["params"]}
    assert params["series_choice"]["fields"] == ["series"]
    for event in (params["zoom"]["zoom"], params["zoom"]["translate"]):
        assert "event.ctrlKey || event.metaKey || event.shiftKey" in event
    assert "series_choice" not in {param["name"] for param in figure("one").spec()["params"]}


def test_panels_have_fixed_sizes_and_no_interactions(tmp_path: Path) -> None:
    both = panels({"left": chart(interactive=False), "right": chart(("x",), interactive=False)})
    spec = Figure("both", "Both", "", both).spec()
    assert [panel["width"] for panel in spec["concat"]] == [300, 300] and "params" not in spec
    Figure("both", "Both", "", both).save(tmp_path / "both.svg")
    svg = (tmp_path / "both.svg").read_text()
    assert svg.count('role-legend-entry"') == 2 and "left" in svg and "right" in svg


def test_forest_plot_shows_missing_estimates_and_missing_intervals(tmp_path: Path) -> None:
    style = {"colour": "#123456", "mark": "#654321", "shape": "diamond"}
    rows = [
        {"row": "both", "x": 0.1, "low": 0.0, "high": 0.2, **style},
        {"row": "no estimate", "x": None, "low": 0.0, "high": 0.2, **style},
        {"row": "no interval", "x": 0.15, "low": None, "high": None, **style},
    ]
    plot = forest(rows, Axis("alpha", -0.1, 0.3), {"row": ""}, rules={0.0: (1, 0)})
    Figure("forest", "", "", plot).save(tmp_path / "forest.svg")
    svg = (tmp_path / "forest.svg").read_text()
    assert svg.count('stroke-dasharray="3,4"') == 1
    assert svg.count('aria-roledescription="point"') == 2 and svg.count('stroke="#654321"') == 2
    assert all(f">{row['row']}</text>" in svg for row in rows)


def test_values_that_are_not_finite_are_not_drawn(tmp_path: Path) -> None:
    axis = Axis("", 0, 1)
    rows = [{"x": 0.5, "y": y, "series": "s"} for y in (0.5, math.nan, math.inf)]
    bars = [{"x": 0.5, "y": 0.5, "low": 0.2, "high": 0.8, "colour": "#123456"}]
    drawn = layered(intervals(bars, axis, axis, {}), points(rows, axis, axis, Series(("s",)), {}))
    Figure("points", "", "", drawn).save(tmp_path / "points.svg")
    svg = (tmp_path / "points.svg").read_text()
    assert svg.count('aria-roledescription="point"') == 2 and "NaN" not in svg


def test_page_script_is_complete_and_safe_inside_a_script_element() -> None:
    script = page_script()
    assert "window.vegaEmbed" in script and len(script) > 500_000
    assert "</script" not in script.lower() and not re.search(
        r"\bimport\s*[\w{]+.*\bfrom\b", script[:200]
    )


def test_literal_replaces_nested_colours_and_keeps_other_text() -> None:
    spec = {"a": ["var(--ink)", {"b": "var(--series-1)"}], "c": "var(--unknown)", "d": 1}
    expected = {"a": [DARK["ink"], {"b": DARK["series-1"]}], "c": "var(--unknown)", "d": 1}
    assert literal(spec, "dark") == expected
