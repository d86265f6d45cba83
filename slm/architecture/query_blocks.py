"""Size of the blocks of queries in which slm/model/attention_matmul.py computes attention. Torch-free."""

from __future__ import annotations

import math

# Measured on two CPU cores, T from 128 to 2048, K from 8 to 64: smaller blocks compute fewer future
# keys, larger blocks give faster matrix products.
MIN_BLOCK_QUERIES, MAX_BLOCKS = 64, 16


def block_queries(queries: int) -> int:
    """Return the number of queries per block (the last block may be smaller)."""
    return max(MIN_BLOCK_QUERIES, math.ceil(queries / MAX_BLOCKS))
