"""Memory of a model during decoding, and the bytes that it reads for one token, from its shape alone.

Norms and activations are small and left out of the KV cache; the weights are all parameters, a tied table once.
"""

from __future__ import annotations

from slm.architecture.shapes import ModelShape, count_parameters

BYTES_PER_VALUE = {"fp32": 4, "bf16": 2}


def kv_cache_bytes(shape: ModelShape, *, tokens: int, batch_size: int, dtype: str) -> int:
    """Return the size of the keys and values of `tokens` positions in every sequence of a batch."""
    per_token = 2 * shape.depth * shape.n_kv_heads * shape.d_head
    return per_token * tokens * batch_size * BYTES_PER_VALUE[dtype]


def decoding_memory_bytes(shape: ModelShape, *, tokens: int, batch_size: int, dtype: str) -> int:
    """Return the memory of the weights and of the KV cache for sequences of `tokens` tokens."""
    weights = count_parameters(shape).params_total * BYTES_PER_VALUE[dtype]
    return weights + kv_cache_bytes(shape, tokens=tokens, batch_size=batch_size, dtype=dtype)


def bytes_read_per_token(shape: ModelShape, *, tokens: int, batch_size: int, dtype: str) -> int:
    """Return the bytes that one decoding step reads after `tokens` tokens: weights of all passes, head and KV cache.

    A block that runs several times in a row is read each time. Of an embedding table that is not the head, one row
    per sequence is read, which is left out.
    """
    counts = count_parameters(shape)
    blocks = (counts.params_non_embedding - shape.d_model) * shape.layer_sharing + shape.d_model
    weights = (blocks + shape.vocab_size * shape.d_model) * BYTES_PER_VALUE[dtype]
    return weights + kv_cache_bytes(shape, tokens=tokens, batch_size=batch_size, dtype=dtype)
