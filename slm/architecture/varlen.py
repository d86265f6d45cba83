"""Limits of attention over documents of several lengths on GPUs ("varlen" kernels). Torch-free."""

from __future__ import annotations

MIN_VARLEN_CAPABILITY = (8, 0)  # FlashAttention 2 needs an A100 or newer
MIN_DOCUMENTS, TOKENS_PER_DOCUMENT = 512, 64
# In a batch up to this size the documents may be shorter, the more so the smaller the batch (`max_documents`).
DENSE_BATCH_TOKENS = MIN_DOCUMENTS * TOKENS_PER_DOCUMENT


def has_varlen_shape(d_head: int) -> bool:
    """Return whether FlashAttention 2 has kernels for this head size."""
    return d_head % 8 == 0 and d_head <= 256


def max_documents(sequences: int, seq_len: int) -> int:
    """Return the number of documents that a layout for sequences x seq_len tokens can hold.

    The kernels start blocks and reserve 128 rows of workspace for each of them, also if it is empty, so
    the number is limited: 64 tokens per document on average, in small batches fewer.
    """
    tokens = sequences * seq_len
    return min(tokens, max(MIN_DOCUMENTS, tokens // TOKENS_PER_DOCUMENT) + sequences)
