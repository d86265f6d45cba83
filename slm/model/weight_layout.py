"""Memory layout of the weights for decoding on a CPU.

A decoding step at batch 1 multiplies every weight matrix by one vector: its time is that of reading the weights. The
matrix-vector products of torch's CPU libraries read a weight (N, K) faster if its columns are contiguous and N >= K:
measured on two cores in fp32, 21 against 11 GB/s for (3072, 576). The values, shapes and names stay as they are.
"""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def store_weights_by_column(model: nn.Module) -> None:
    """Make the columns of each matrix with N >= K rows contiguous; one matrix at a time is held twice.

    For inference only: the optimizers of torch are slower on such parameters.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and len(module.weight) >= module.in_features:
            # A table that is tied to the embedding stays tied: the parameter is the same object.
            module.weight.data = module.weight.t().contiguous().t()
