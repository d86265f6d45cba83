"""Keys and values of all processed tokens, in memory that is allocated once.

Shapes: B batch, G key/value heads, T new tokens, S tokens so far, C capacity, K d_head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from slm.architecture.shapes import ModelShape


@dataclass(frozen=True)
class NewTokens:
    """What the T new tokens of a pass have in common in all layers.

    Attributes:
        cos, sin: RoPE factors (B or 1, T, 1, K); the first half of sin is negated, so that a rotation is
            x * cos + roll(x, K / 2) * sin.
        mask: added to the scores, (B or 1, 1, T, S); None if each token attends to all tokens up to itself.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor | None


class KeyValueCache:
    """Keys and values of all processed tokens: two tensors (B, G, C, K) per pass through a block.

    Memory is allocated by the first pass. A shared block has one pair per pass, because its keys differ between
    passes. With `padding` (B,), row b begins with padding[b] padding tokens: positions start after them, and no
    other token attends to them.
    """

    def __init__(
        self, shape: ModelShape, capacity: int | None = None, padding: Tensor | None = None
    ):
        self._depth = shape.depth
        self._size = (shape.n_kv_heads, shape.d_head)
        self.capacity = capacity or shape.seq_len
        self.padding = padding
        self.length = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def begin(self, batch: int, count: int, cos_sin: Tensor, dtype: torch.dtype) -> NewTokens:
        """Prepare a pass with `count` new tokens per row; cos_sin is the RoPE table (2, seq_len, K).

        Raises:
            ValueError: if the tokens exceed the capacity.
        """
        end = self.length + count
        if end > self.capacity:
            raise ValueError(f"{end} tokens exceed the capacity of the cache, {self.capacity}")
        if not self._keys:
            self._allocate(batch, cos_sin.device, dtype)
        positions = torch.arange(self.length, end, device=cos_sin.device)
        mask = None
        if self.padding is not None:
            mask = self._padded_mask(positions, end, dtype)
            positions = (positions - self.padding[:, None]).clamp_(min=0)
            return NewTokens(*_rope_factors(cos_sin[:, positions], dtype), mask)
        if 0 < self.length < end - 1:  # one pass over all tokens, or a single token, needs no mask
            mask = self._causal_mask(positions, end, dtype)
        return NewTokens(*_rope_factors(cos_sin[:, None, self.length : end], dtype), mask)

    def append(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, T, G, K) of pass `index`; return those of all tokens, (B, G, S, K) each."""
        start, count = self.length, keys.shape[1]
        stored = []
        for storage, new in ((self._keys[index], keys), (self._values[index], values)):
            so_far = storage.narrow(2, 0, start + count)
            so_far.narrow(2, start, count).copy_(new.transpose(1, 2))
            stored.append(so_far)
        return stored[0], stored[1]

    def end(self, count: int) -> None:
        """End a pass: its tokens now count as processed."""
        self.length += count

    def clear(self) -> None:
        """Forget all tokens; the memory is kept."""
        self.length = 0

    def _allocate(self, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        groups, d_head = self._size
        size = (self._depth, batch, groups, self.capacity, d_head)
        # Zeros: a static step multiplies masked values by zero, which must not be NaN.
        self._keys = list(torch.zeros(size, device=device, dtype=dtype))
        self._values = list(torch.zeros(size, device=device, dtype=dtype))

    def _causal_mask(self, positions: Tensor, end: int, dtype: torch.dtype) -> Tensor:
        keys = torch.arange(end, device=positions.device)
        return _additive(keys <= positions[:, None], dtype)[None, None]

    def _padded_mask(self, positions: Tensor, end: int, dtype: torch.dtype) -> Tensor:
        assert self.padding is not None
        keys = torch.arange(end, device=positions.device)
        queries = positions[:, None]
        is_text = keys >= self.padding[:, None, None]
        # Padding attends to itself: a softmax over nothing would be NaN.
        return _additive((keys <= queries) & is_text | (keys == queries), dtype)[:, None]


class StaticKeyValueCache(KeyValueCache):
    """Cache whose passes with one new token have the same shapes at every position.

    Such a pass reads its position from a tensor and attends over the whole capacity, with a mask, so that a CUDA
    graph of it is valid for all tokens. The first pass, over the prompt, is that of `KeyValueCache`.
    """

    position: Tensor
    """Number of processed tokens, shape (1,), int64."""

    def begin(self, batch: int, count: int, cos_sin: Tensor, dtype: torch.dtype) -> NewTokens:
        if not self._is_static(count):
            return super().begin(batch, count, cos_sin, dtype)
        if self.length >= self.capacity:
            raise ValueError(
                f"{self.length + 1} tokens exceed the capacity of the cache, {self.capacity}"
            )
        keys = torch.arange(self.capacity, device=cos_sin.device)
        if self.padding is None:
            mask = _additive(keys <= self.position, dtype)[None, None, None]
            return NewTokens(*_rope_factors(cos_sin[:, self.position[None]], dtype), mask)
        visible = (keys <= self.position) & (keys >= self.padding[:, None])
        mask = _additive(visible, dtype)[:, None, None]
        positions = (self.position - self.padding)[:, None]
        return NewTokens(*_rope_factors(cos_sin[:, positions], dtype), mask)

    def append(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if not self._is_static(keys.shape[1]):
            return super().append(index, keys, values)
        for storage, new in ((self._keys[index], keys), (self._values[index], values)):
            storage.index_copy_(2, self.position, new.transpose(1, 2))
        return self._keys[index], self._values[index]

    def end(self, count: int) -> None:
        if self._is_static(count):
            self.position += 1
        super().end(count)
        if self.length == count:  # after the prompt
            self._set_position()

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self.length = length
        self.position.fill_(length)

    def _is_static(self, count: int) -> bool:
        return count == 1 and self.length > 0

    def _set_position(self) -> None:
        if hasattr(self, "position"):  # a recorded graph reads this tensor
            self.position.fill_(self.length)
        else:
            self.position = torch.tensor([self.length], device=self._keys[0].device)


def _rope_factors(cos_sin: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cos and signed sin (B or 1, T, 1, K) of the table's rows (2, B or 1, T, K)."""
    cos, sin = cos_sin.to(dtype)
    first, second = sin.chunk(2, dim=-1)
    return cos.unsqueeze(-2), torch.cat([-first, second], dim=-1).unsqueeze(-2)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where `visible`, else -inf."""
    zeros = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return zeros.masked_fill_(~visible, -math.inf)
