"""Random states: at the start of a run, in its checkpoints, and per step for dropout.

Batches need none, and dropout is seeded step by step. The states are kept so that code that a user adds to a
run may draw random numbers and still resume exactly.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def seed_step(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Seed the generators, so that dropout is a function of these arguments only."""
    (word,) = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    # torch.manual_seed records a stack trace at each call if CUDA is built in but not used: 1 ms.
    torch.default_generator.manual_seed(int(word))
    if device.type == "cuda":
        torch.cuda.manual_seed(int(word))


def seed_random_states(seed: int) -> None:
    """Seed every generator, whatever ran in this process before."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # CUDA's too


def random_states(*, cuda: bool) -> dict[str, Any]:
    """Return the states of the python, numpy, torch and CUDA generators, loadable with `weights_only`."""
    version, internal, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    key = {"key": numpy_state["state"]["key"].tolist(), "pos": int(numpy_state["state"]["pos"])}
    return {
        "python": [version, list(internal), gauss],
        "numpy": {**numpy_state, "state": key},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if cuda else [],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    key = np.array(states["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state({**states["numpy"], "state": {**states["numpy"]["state"], "key": key}})
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
