"""Size, power and coverage on simulated studies. A failure has a probability below 0.001 if the targets are met."""

from __future__ import annotations

import pytest

from tests.benchmarks.simulated_studies import judge, misses, summarize

pytestmark = pytest.mark.numeric
STUDIES = 40


@pytest.mark.parametrize(
    "name", ["k6", "three_k6_h2_drift", "three_k6_h2_missing", "k8_exponent_.02"]
)
def test_simulated_studies_meet_the_targets(name: str) -> None:
    result = summarize([judge(name, 0, study) for study in range(STUDIES)])
    assert misses(name, result, p=0.001) == []
