"""Compare deep and wide language models below one billion parameters at matched compute."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slm.model.transformer import Transformer

__version__ = "0.1.0"


def load(folder: str | Path) -> Transformer:
    """Load the model of a run directory or of a local Llama-format checkpoint, in eval mode.

    It maps tokens (B, T) to logits (B, T, V). See `slm.evaluation.load.load_model`.
    """
    from slm.evaluation.load import load_model  # torch takes seconds to import

    return load_model(folder)
