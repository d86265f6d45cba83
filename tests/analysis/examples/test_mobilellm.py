"""The committed results of the page on MobileLLM are those that the code computes."""

from __future__ import annotations

import json

import pytest

from analysis import fit_power_law
from analysis.examples.published.depth_ablation import ABLATION, SHALLOW, USUAL, depth_gain
from analysis.examples.published.four_points import (
    accepted,
    fit_given_e,
    laws_by_e,
    losses,
    simulate_intervals,
    sizes,
)
from analysis.notebooks.mobilellm import MODELS, kaplan_as_perplexity
from tests.conftest import ROOT

FILE = ROOT / "analysis" / "examples" / "published" / "mobilellm" / "results.json"
RESULTS = json.loads(FILE.read_text(encoding="utf-8"))
SAVED = 1e-5  # results.json has 6 digits
pytestmark = pytest.mark.numeric


def test_slopes_and_statements_about_them() -> None:
    total = [model.params_total for model in MODELS]
    in_ppl = fit_power_law(total, [model.perplexity for model in MODELS], unit="perplexity")
    in_body = fit_power_law(sizes(), losses())
    assert RESULTS["slope_ppl"][0] == pytest.approx(-in_ppl.params["alpha"], rel=SAVED)
    assert RESULTS["slope_ppl"] == pytest.approx([-0.2457, -0.3062, -0.1852], abs=1e-4)
    assert RESULTS["slope_loss_body"][0] == pytest.approx(-in_body.params["alpha"], rel=SAVED)
    assert RESULTS["slope_loss_total"] == pytest.approx([-0.1105, -0.1269, -0.0941], abs=1e-4)
    assert RESULTS["p_kaplan"] == pytest.approx(in_ppl.p_value(0.076), rel=SAVED)
    assert RESULTS["ppl_at_2b"] == pytest.approx(in_ppl.predict(2e9), rel=SAVED)
    assert RESULTS["kaplan_slope_as_ppl"] == pytest.approx(
        -kaplan_as_perplexity().params["alpha"], rel=SAVED
    )


def test_law_with_e_given_is_the_least_squares_fit() -> None:
    law = fit_given_e(1.0, noise=0.01)
    misfit = ((losses() - law.loss(sizes())) ** 2).sum() / 0.01**2
    assert law.chi2 == pytest.approx(misfit)
    for a, alpha in ((1.01, 1.0), (0.99, 1.0), (1.0, 1.01), (1.0, 0.99)):
        other = 1.0 + a * law.A * sizes() ** -(alpha * law.alpha)
        assert ((losses() - other) ** 2).sum() / 0.01**2 > misfit * 1.01


def test_accepted_ranges() -> None:
    kept = accepted(laws_by_e(RESULTS["noise"]))
    saved = RESULTS["accepted_with_known_noise"][f"{RESULTS['noise']:.4f}"]
    assert saved["E"] == pytest.approx([kept[0].E, kept[-1].E], abs=0.011)  # one step of the grid
    assert saved["alpha"] == pytest.approx([kept[0].alpha, kept[-1].alpha], abs=0.01)


def test_simulated_intervals() -> None:
    found = simulate_intervals(fit_given_e(0.0, RESULTS["noise"]), RESULTS["noise"])
    saved = RESULTS["simulated"]["E=0.00"]
    assert found.sd == pytest.approx(saved["sd"], rel=0.01)
    assert found.half_widths == pytest.approx(saved["half_widths"], rel=0.01)
    assert found.coverage == pytest.approx(0.95, abs=0.015)  # by construction: the law is a line


def test_ablation() -> None:
    gains = [depth_gain(other) for other in (*USUAL.values(), *SHALLOW.values())]
    for saved, gain in zip(RESULTS["depth_gain"], gains, strict=True):
        for key in ("gain", "standard_error", "flops_ratio", "worth"):
            assert saved[key] == pytest.approx(getattr(gain, key), rel=SAVED)
    assert [row["average"] for row in RESULTS["ablation"]] == [model.average for model in ABLATION]
