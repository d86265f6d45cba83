"""Autoregressive generation with a preallocated key/value cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from slm.architecture.shapes import ModelShape


class KeyValueCache:
    """Keys and values of all processed tokens, shape (depth, 2, B, G, capacity, K).

    Memory is allocated at the first `append`. A shared block has one slot per pass, because its keys
    differ between passes.
    """

    def __init__(self, shape: ModelShape, capacity: int | None = None):
        self._depth = shape.depth
        self._capacity = capacity or shape.seq_len
        self._storage: Tensor | None = None
        self.length = 0

    def slot(self, index: int) -> Slot:
        return Slot(self, index)

    def append(self, index: int, new: Tensor) -> Tensor:
        """Store keys and values (2, B, G, T, K) of pass `index`; return all of this pass so far.

        Raises:
            ValueError: if the tokens exceed the capacity.
        """
        if self._storage is None:
            two, batch, groups, _, d_head = new.shape
            self._storage = new.new_empty(self._depth, two, batch, groups, self._capacity, d_head)
        end = self.length + new.shape[3]
        if end > self._capacity:
            raise ValueError(f"{end} tokens exceed the capacity of the cache, {self._capacity}")
        self._storage[index, :, :, :, self.length : end] = new
        return self._storage[index, :, :, :, :end]


@dataclass(frozen=True)
class Slot:
    """The part of a cache for one pass through a block."""

    cache: KeyValueCache
    index: int

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, G, T, K) of new tokens; return those of all tokens so far."""
        stored = self.cache.append(self.index, torch.stack([keys, values]))
        return stored[0], stored[1]


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
    """Return the prompt (B, T) followed by `new_tokens` generated tokens per row.

    Args:
        model: a model in eval mode, on the device of the prompt.
        prompt: token ids (B, T).
        new_tokens: number of tokens to generate per row.
        temperature: 0 is greedy decoding; above 0, tokens are sampled from softmax(logits / temperature).
        generator: source of random numbers for sampling.

    Raises:
        ValueError: if T + new_tokens exceeds the model's seq_len; nothing is computed then.
    """
    total = prompt.shape[1] + new_tokens
    if total > model.shape.seq_len:
        raise ValueError(f"{total} tokens exceed the model's seq_len={model.shape.seq_len}")
    cache = KeyValueCache(model.shape, total)
    tokens, inputs = prompt, prompt
    for _ in range(new_tokens):
        logits = model(inputs, cache=cache)[:, -1].float()
        if temperature == 0:
            inputs = logits.argmax(dim=-1, keepdim=True)
        else:
            probabilities = (logits / temperature).softmax(dim=-1)
            inputs = torch.multinomial(probabilities, 1, generator=generator)
        tokens = torch.cat([tokens, inputs], dim=1)
    return tokens
