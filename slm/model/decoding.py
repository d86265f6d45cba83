"""Decoding token by token with a preallocated key/value cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from slm.architecture.shapes import ModelShape


class KeyValueCache:
    """Keys and values (depth, B, G, S, K) of the tokens seen so far.

    A shared block has a slot for each time it runs: its inputs differ, and so do its keys.
    """

    def __init__(
        self,
        shape: ModelShape,
        batch: int,
        *,
        capacity: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        size = (shape.depth, batch, shape.n_kv_heads, capacity or shape.seq_len, shape.d_head)
        self._keys = torch.empty(size, device=device, dtype=dtype)
        self._values = torch.empty(size, device=device, dtype=dtype)
        self.length = 0

    def slot(self, index: int) -> Slot:
        return Slot(self._keys[index], self._values[index], self.length)


@dataclass(frozen=True)
class Slot:
    """The part of the cache that belongs to one pass through a block."""

    keys: Tensor
    values: Tensor
    length: int

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, G, T, K) of new tokens; all keys and values up to and with them."""
        end = self.length + keys.shape[2]
        if end > self.keys.shape[2]:
            raise ValueError(f"{end} tokens do not fit a cache of {self.keys.shape[2]}")
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]


class CachingModel(Protocol):
    shape: ModelShape

    def __call__(self, tokens: Tensor, *, cache: KeyValueCache) -> Tensor: ...


@torch.inference_mode()
def generate(
    model: CachingModel,
    prompt: Tensor,
    new_tokens: int,
    *,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue prompt (B, T) by `new_tokens`; temperature 0 takes the likeliest token.

    The model is in eval mode on the prompt's device; T + new_tokens may not exceed its seq_len.
    """
    total = prompt.shape[1] + new_tokens
    if total > model.shape.seq_len:
        raise ValueError(f"{total} tokens exceed the model's seq_len={model.shape.seq_len}")
    cache = KeyValueCache(model.shape, prompt.shape[0], capacity=total, device=prompt.device)
    tokens, latest = prompt, prompt
    for _ in range(new_tokens):
        logits = model(latest, cache=cache)[:, -1].float()
        if temperature == 0:
            latest = logits.argmax(dim=-1, keepdim=True)
        else:
            odds = (logits / temperature).softmax(dim=-1)
            latest = torch.multinomial(odds, 1, generator=generator)
        tokens = torch.cat([tokens, latest], dim=1)
    return tokens
