"""An independent reader of GGUF files: llama.cpp's conventions in NumPy, for comparison with our model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class GGUFFile:
    """The metadata and tensors of a GGUF file."""

    def __init__(self, path: Path):
        from gguf import GGUFReader, dequantize

        reader = GGUFReader(path)
        self.fields: dict[str, Any] = {
            name: field.contents() for name, field in reader.fields.items()
        }
        self.types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
        self.tensors: dict[str, NDArray[Any]] = {
            tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors
        }

    def llama(self, key: str) -> Any:
        return self.fields[f"llama.{key}"]

    def tokenizer(self, key: str) -> Any:
        return self.fields[f"tokenizer.ggml.{key}"]

    def logits(self, tokens: list[int]) -> Array:
        """Return the logits (T, V) of one sequence, in float64."""
        table = self._matrix("token_embd")
        x = table[tokens]
        for layer in range(self.llama("block_count")):
            block = f"blk.{layer}"
            x = x + self._attention(block, self._norm(f"{block}.attn_norm", x))
            h = self._norm(f"{block}.ffn_norm", x)
            gate, up = (
                h @ self._matrix(f"{block}.ffn_gate").T,
                h @ self._matrix(f"{block}.ffn_up").T,
            )
            x = x + (gate / (1 + np.exp(-gate)) * up) @ self._matrix(f"{block}.ffn_down").T
        head = self._matrix("output") if "output.weight" in self.tensors else table
        return self._norm("output_norm", x) @ head.T

    def _matrix(self, name: str) -> Array:
        return self.tensors[f"{name}.weight"].astype(np.float64)

    def _norm(self, name: str, x: Array) -> Array:
        eps = self.llama("attention.layer_norm_rms_epsilon")
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * self._matrix(name)

    def _attention(self, block: str, x: Array) -> Array:
        heads, groups = self.llama("attention.head_count"), self.llama("attention.head_count_kv")
        d_head, length = self.llama("attention.key_length"), len(x)
        q = self._rope((x @ self._matrix(f"{block}.attn_q").T).reshape(length, heads, d_head))
        k = self._rope((x @ self._matrix(f"{block}.attn_k").T).reshape(length, groups, d_head))
        v = (x @ self._matrix(f"{block}.attn_v").T).reshape(length, groups, d_head)
        attended = np.empty_like(q)
        for head in range(heads):
            group = head * groups // heads
            scores = q[:, head] @ k[:, group].T / np.sqrt(d_head)
            scores[np.triu_indices(length, 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            attended[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, group]
        return attended.reshape(length, -1) @ self._matrix(f"{block}.attn_output").T

    def _rope(self, x: Array) -> Array:
        """Rotate the pairs (2i, 2i + 1) of x (T, H, K), llama.cpp's rope type `normal`."""
        size = self.llama("rope.dimension_count")
        frequencies = self.llama("rope.freq_base") ** -(np.arange(0, size, 2) / size)
        angles = np.arange(len(x))[:, None, None] * frequencies
        even, odd = x[..., 0::2], x[..., 1::2]
        rotated = np.empty_like(x)
        rotated[..., 0::2] = even * np.cos(angles) - odd * np.sin(angles)
        rotated[..., 1::2] = even * np.sin(angles) + odd * np.cos(angles)
        return rotated
