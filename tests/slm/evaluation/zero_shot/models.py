"""A small random model, its tokenizer, and lm-eval's own class for the same model in the format of transformers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from slm.architecture.shapes import ModelShape
from slm.data.tokenizers.export import save_for_transformers
from slm.data.tokenizers.tokenizer import Tokenizer
from slm.model.hf import export_llama
from slm.model.transformer import Transformer
from tests.in_process import ROOT

TASK_DATA = Path(os.environ.get("SLM_TEST_DATA", ROOT.parent / "shared" / "data")) / "zero_shot"
TEXTS = [
    "The depth of a model is the number of its layers. Deep models are narrow at equal compute.",
    "A wide model has fewer layers, so each step is faster. Which one is better? It depends on size.",
]


def random_model(vocab_size: int, seq_len: int, seed: int = 0) -> Transformer:
    """Return a model of 30 thousand parameters whose predictions differ between tokens."""
    torch.manual_seed(seed)
    model = Transformer(ModelShape(2, 32, 4, 2, 8, 88, vocab_size, seq_len)).eval()
    with torch.no_grad():
        model.embedding.weight.normal_(std=0.3)
    return model


def lm_eval_hf(model: Transformer, tokenizer: Tokenizer, folder: Path) -> Any:
    """Return lm-eval's model of the exported checkpoint."""
    pytest.importorskip("accelerate")  # needed by lm-eval's class beside transformers
    from lm_eval.models.huggingface import HFLM

    export_llama(model, folder, tokenizer.eot_id)
    save_for_transformers(tokenizer, folder)
    # In float64, its sums of log-likelihoods are as exact as ours.
    settings = {"dtype": "float32", "softmax_dtype": torch.float64, "batch_size": 16}
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # accelerate would join the ranks of an earlier test
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            patch.delenv(name, raising=False)
        return HFLM(pretrained=str(folder), device="cpu", **settings)
