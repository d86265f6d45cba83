"""Decoding token by token with a preallocated key/value cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from slm.architecture.shapes import ModelShape


class KeyValueCache:
    """Keys and values (depth, B, G, S, K) of the tokens seen so far, allocated on first use.

    A shared block has a slot for each time it runs: its inputs differ, and so do its keys.
    """

    def __init__(self, shape: ModelShape, capacity: int | None = None):
        self._depth = shape.depth
        self._capacity = capacity or shape.seq_len
        self._held: Tensor | None = None
        self.length = 0

    def slot(self, index: int) -> Slot:
        return Slot(self, index)

    def append(self, index: int, new: Tensor) -> Tensor:
        """Store new (2, B, G, T, K) of one pass; all keys and values up to and with them."""
        if self._held is None:
            both, batch, groups, _, d_head = new.shape
            self._held = new.new_empty(self._depth, both, batch, groups, self._capacity, d_head)
        end = self.length + new.shape[3]
        if end > self._capacity:
            raise ValueError(f"{end} tokens do not fit a cache of {self._capacity}")
        self._held[index, :, :, :, self.length : end] = new
        return self._held[index, :, :, :, :end]


@dataclass(frozen=True)
class Slot:
    """The part of the cache that belongs to one pass through a block."""

    cache: KeyValueCache
    index: int

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, G, T, K) of new tokens; all keys and values up to and with them."""
        held = self.cache.append(self.index, torch.stack([keys, values]))
        return held[0], held[1]


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
    if total > model.shape.seq_len:  # before any of them is computed
        raise ValueError(f"{total} tokens exceed the model's seq_len={model.shape.seq_len}")
    cache = KeyValueCache(model.shape, total)
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
