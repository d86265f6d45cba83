"""Detection of loss spikes."""

from __future__ import annotations

import numpy as np
import pytest

from slm.tracking.spikes import loss_spikes

pytestmark = pytest.mark.numeric


def noisy_losses(seed: int, rows: int = 1000) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=rows)
    return 2.0 + 3 * np.arange(1, rows + 1) ** -0.4 + 0.02 * noise


def test_spikes_are_found_and_consecutive_ones_count_once() -> None:
    losses = noisy_losses(0)
    from_noise = set(loss_spikes(losses.tolist()))
    losses[300:304] += 0.5
    losses[700] += 0.2
    found = set(loss_spikes(losses.tolist()))
    assert {300, 700} <= found and not found & {301, 302, 303}
    assert len(found - from_noise - {300, 700}) <= 1  # spikes do not inflate the limit


def test_noise_and_initial_descent_are_not_spikes() -> None:
    counts = [len(loss_spikes(noisy_losses(seed).tolist())) for seed in range(40)]
    assert 0.5 < np.mean(counts) / (1000 / 500) < 2
    assert loss_spikes((5 * 0.99 ** np.arange(500)).tolist()) == []


@pytest.mark.parametrize("losses", [[], [3.0], [3.0, 2.0], [3.0, 3.0, 3.0]])
def test_short_curves_have_no_spikes(losses: list[float]) -> None:
    assert loss_spikes(losses) == []


def test_drop_is_not_a_spike() -> None:
    losses = noisy_losses(1)
    losses[500] -= 0.5
    assert 500 not in loss_spikes(losses.tolist())
