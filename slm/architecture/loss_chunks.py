"""Size of the chunks of tokens in which the head loss (slm/model/loss.py) computes its logits. Torch-free."""

from __future__ import annotations

import math

# Measured on two CPU cores with vocabularies of 99 to 32,000: chunks of CPU_LOGITS logits (16 MiB)
# fit into the CPU cache; below MIN_TOKENS tokens, accumulating the head's gradient dominates.
CPU_LOGITS = 2**22
# On a GPU each chunk reads and writes the head's fp32 gradient once and launches about 16 kernels,
# so chunks are as large as memory allows: the fp32 logits of a chunk take at most 512 MiB (4096 tokens
# for a vocabulary of 32,000), except below MIN_TOKENS tokens.
GPU_LOGITS = 2**27
MIN_TOKENS = 256
ALIGNMENT = 64  # rows of a tile of a matrix product on GPUs


def chunk_tokens(vocab_size: int, tokens: int, *, on_gpu: bool) -> int:
    """Return the number of tokens per chunk (the last chunk may be smaller).

    On GPUs the chunks of a micro-batch have the same size where possible, which compiled code needs.
    """
    if not on_gpu:
        return max(MIN_TOKENS, CPU_LOGITS // vocab_size)
    largest = max(MIN_TOKENS, GPU_LOGITS // vocab_size // ALIGNMENT * ALIGNMENT)
    chunks = math.ceil(tokens / largest)
    return min(largest, math.ceil(tokens / chunks / ALIGNMENT) * ALIGNMENT) if chunks else largest
