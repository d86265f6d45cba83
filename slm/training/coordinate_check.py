"""Coordinate check: whether activations and updates keep their size as a model grows.

A few real optimizer steps on one batch of random tokens, over widths at one depth and over depths at
one width (2203.03466, appendix D.1; over depth as in 2505.01618, section 4). What is measured is the
residual stream after the last block: its root mean square before training, and that of its change
after each step. A parametrization passes if neither depends on the shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from slm.architecture.shapes import ModelShape
from slm.config.schema import Config, OptimizerConfig, ParametrizationConfig, ParametrizationKind
from slm.files import write_json
from slm.model.build import build_model
from slm.model.loss import token_nats
from slm.model.parametrization import Parametrization, initialize
from slm.training.optimizer import build_optimizer

BASE_WIDTH, BASE_DEPTH = 32, 2
WIDTHS = (32, 64, 128, 256)
DEPTHS = (2, 4, 8, 16, 32)
VOCAB_SIZE, SEQ_LEN, SEQUENCES, D_HEAD = 64, 32, 8, 16


KINDS: tuple[ParametrizationKind, ...] = ("standard", "mup", "completep")
AXES = ("width", "depth")


@dataclass(frozen=True)
class Coordinate:
    """Root mean squares at one step of one shape.

    `stream` is taken after the last block and `update` is its change since step 0; `embedding` is
    the stream before the first block, the floor that vanishing branches would leave.
    """

    kind: str
    axis: str
    d_model: int
    n_layers: int
    seed: int
    step: int
    embedding: float
    stream: float
    update: float
    logits: float


def write_coordinates(path: Path, seeds: Sequence[int] = (0, 1, 2)) -> None:
    """Check all parametrizations over both axes; a list of Coordinates as JSON."""
    rows = [
        asdict(row)
        for kind in KINDS
        for axis in AXES
        for seed in seeds
        for row in coordinate_check(kind, axis, seed=seed)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, rows)


def coordinate_check(
    kind: ParametrizationKind, axis: str, *, steps: int = 5, lr: float = 1e-3, seed: int = 0
) -> Iterator[Coordinate]:
    """Measure one parametrization along `axis`: "width", 8-fold, or "depth", 16-fold.

    At the base shape all parametrizations are one model.
    """
    widths, depths = (WIDTHS, (BASE_DEPTH,)) if axis == "width" else ((BASE_WIDTH,), DEPTHS)
    for width, depth in product(widths, depths):
        heads = width // D_HEAD
        shape = ModelShape(depth, width, heads, heads, D_HEAD, 8 * width // 3, VOCAB_SIZE, SEQ_LEN)
        for step, measured in enumerate(_train(kind, shape, steps, lr, seed)):
            yield Coordinate(kind, axis, width, depth, seed, step, **measured)


def _train(
    kind: ParametrizationKind, shape: ModelShape, steps: int, lr: float, seed: int
) -> Iterator[dict[str, float]]:
    """The root mean squares of a Coordinate, before the first step and after each."""
    config = ParametrizationConfig(kind=kind, base_width=BASE_WIDTH, base_depth=BASE_DEPTH)
    parametrization = Parametrization.of(config, shape)
    model = build_model(Config(parametrization=config), shape)
    initialize(model, parametrization, seed)
    optimizer = build_optimizer(model, OptimizerConfig(lr=lr, weight_decay=0.0), parametrization)
    drawn = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB_SIZE, (SEQUENCES, SEQ_LEN + 1), generator=drawn)
    embedded: list[Tensor] = []
    streams: list[Tensor] = []
    model.embedding.register_forward_hook(lambda *call: embedded.append(call[2].detach()))
    model.blocks[-1].register_forward_hook(lambda *call: streams.append(call[2].detach()))
    for _ in range(steps + 1):
        logits = model(tokens[:, :-1])
        yield {
            "embedding": _rms(embedded[-1]),
            "stream": _rms(streams[-1]),
            "update": _rms(streams[-1] - streams[0]),
            "logits": _rms(logits.detach()),
        }
        optimizer.zero_grad()
        token_nats(logits, tokens[:, 1:]).mean().backward()
        optimizer.step()


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
