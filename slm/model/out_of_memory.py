"""Recognition of the errors that torch raises when memory runs out."""

from __future__ import annotations

import torch

# In messages of torch's CPU allocator (Linux, others) and of CUDA libraries, which raise a plain RuntimeError.
SIGNS = ("can't allocate memory", "not enough memory", "_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(sign in str(error) for sign in SIGNS)
