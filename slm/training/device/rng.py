"""Random states: what a run starts from, what its checkpoints hold, what a step draws from.

Order and content of batches need none of it, and neither does dropout, which is seeded step by step.
It is kept so that code added to a run, a callback say, may draw and still resume exactly.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def seed_step(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Make what dropout draws in a step a function of these, and of nothing that came before."""
    (words,) = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    # Not torch.manual_seed, which notes a stack trace a call where CUDA is built in but not used.
    torch.default_generator.manual_seed(int(words))
    if device.type == "cuda":
        torch.cuda.manual_seed(int(words))


def seed_random_states(seed: int) -> None:
    """Start every generator from the run's seed, whatever ran in this process before."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # CUDA's too


def random_states(*, cuda: bool) -> dict[str, Any]:
    """States of the python, numpy, torch and CUDA generators, as types `weights_only` can load."""
    version, internal, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    return {
        "python": [version, list(internal), gauss],
        "numpy": {**numpy_state, "state": _plain(numpy_state["state"])},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if cuda else [],
    }


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    return {"key": state["key"].tolist(), "pos": int(state["pos"])}


def restore_random_states(states: Mapping[str, Any]) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    key = np.array(states["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state({**states["numpy"], "state": {**states["numpy"]["state"], "key": key}})
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
