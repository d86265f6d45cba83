"""Compare deep and wide language models below one billion parameters at matched compute."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from slm.data.tokenizers.tokenizer import Tokenizer
    from slm.model.transformer import Transformer

__version__ = "0.1.0"


def load(folder: str | Path, dtype: Literal["fp32", "bf16"] = "fp32") -> Transformer:
    """Load the model of a run directory or of a local Llama-format folder, in eval mode, on the CPU.

    The model maps tokens (B, T) to logits (B, T, V). From a run, the newest checkpoint is loaded: the final
    weights if the run is finished.

    Args:
        folder: run directory, or folder with `config.json` and the weights of a Llama or MobileLLM model.
        dtype: of weights and activations. bf16 is for CPUs that multiply bf16: the weights are stored for decoding
            there, and the linear layers have no parameters. For a GPU, load fp32 and move it:
            `load(folder).to("cuda", torch.bfloat16)`.

    Raises:
        DataError: if the folder is neither, or a file of a Llama-format folder is missing or damaged.
        RunError: if the run has no usable checkpoint.
    """
    from slm.evaluation.load import load_model  # torch takes seconds to import

    return load_model(folder, dtype)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load the tokenizer of a run directory or of a local Llama-format folder.

    `encode(text)` returns token ids, `decode(ids)` their text, and `eot_id` is the token before each text.

    Args:
        folder: as for `slm.load`; a Llama-format folder needs a tokenizer.json or a tokenizer.model.

    Raises:
        DataError: if the folder has no tokenizer, or a file is damaged.
        RunError: if the run has no tokenizer.
    """
    from slm.evaluation.load import load_tokenizer_from

    return load_tokenizer_from(folder)
