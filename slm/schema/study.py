"""The cells of a study."""

from __future__ import annotations

import dataclasses
from typing import Literal

from slm.schema.types import Index, Name, Positive, Scalar, Size, section


@section
class StudyConfig:
    name: Name = "single"
    """Folder under runs_dir, and the W&B group."""
    families: tuple[Name, ...] = ()
    """Families compared on every rung; names of files in conf/family."""
    sizes: tuple[Size, ...] = ()
    """Rungs, each a `size`."""
    models: tuple[Name, ...] = ()
    """Rungs, each a preset in conf/model; families with an aspect ratio give its counterparts."""
    tokens_per_param: tuple[Positive, ...] = ()
    """Token budgets of every rung, as budget.tokens_per_param."""
    tokens: tuple[Size, ...] = ()
    """Or token budgets as budget.tokens, the same for all rungs."""
    seeds: tuple[Index, ...] = (0,)
    """Seeds of every cell."""
    share_trunks: bool = True
    """Decay all budgets of a shape and seed from one wsd trunk, instead of training each from its first step."""
    grid: dict[str, tuple[Scalar, ...]] = dataclasses.field(default_factory=dict)
    """Further keys to vary, each with its values; every combination makes cells of its own."""
    analysis: Literal["families", "lr_transfer", "khop"] = "families"
    """What the report answers: which family is better, where each shape's best learning rate lies, or how many hops each follows."""
