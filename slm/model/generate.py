"""Autoregressive generation: greedy decoding and sampling, for batches, token by token.

Every pass after the first has one new token per row. On a GPU it has static shapes and is replayed as a CUDA graph:
one launch instead of some hundred. Nothing is compiled.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from slm.errors import ConfigError, DataError, Problem
from slm.model.kv_cache import KeyValueCache, StaticKeyValueCache

if TYPE_CHECKING:
    from slm.model.transformer import Transformer

CAPACITY_MULTIPLE = 8  # of a static cache: CUDA's attention copies masks of other lengths
LOWEST_TEMPERATURE = 1e-4  # above 0; logits / temperature overflow at much smaller values
SEED_END = 1 << 63  # of torch's generators
WARMUP_STEPS = 2  # before a CUDA graph is recorded: libraries allocate their buffers


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is chosen from the logits.

    Attributes:
        temperature: 0 takes the likeliest token (greedy decoding); else, from 1e-4, tokens are drawn from
            softmax(logits / temperature).
        top_k: draw from the k likeliest tokens only.
        top_p: draw from the smallest set of likeliest tokens with a total probability of at least top_p
            (1904.09751); with top_k, of the tokens that top_k keeps.
        seed: of the random numbers.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def problems(self) -> Iterator[Problem]:
        """Yield a problem for every invalid value."""
        is_greedy = self.temperature == 0
        if not is_greedy and not LOWEST_TEMPERATURE <= self.temperature < math.inf:
            rule = f"must be 0 or at least {LOWEST_TEMPERATURE}"
            yield Problem("temperature", self.temperature, rule, "0 is greedy")
        if self.top_k is not None and self.top_k < 1:
            yield Problem("top_k", self.top_k, "must be at least 1", "1 is greedy")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            yield Problem("top_p", self.top_p, "must be above 0 and at most 1", "1 keeps all")
        if not 0 <= self.seed < SEED_END:
            yield Problem("seed", self.seed, "must be at least 0 and below 2^63")

    def filter(self, logits: Tensor) -> Tensor:
        """Return logits / temperature (B, V), with -inf for the tokens that top_k and top_p leave out."""
        logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            kth = logits.topk(self.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < kth, -math.inf)
        if self.top_p is not None and self.top_p < 1:
            ordered, order = logits.sort(dim=-1, descending=True)
            probabilities = ordered.softmax(dim=-1)
            likelier = probabilities.cumsum(dim=-1) - probabilities  # than each token, in total
            left_out = (likelier >= self.top_p).scatter(-1, order, likelier >= self.top_p)
            logits = logits.masked_fill(left_out, -math.inf)
        return logits

    def choose(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return one token (B,) per row of logits (B, V)."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        probabilities = self.filter(logits.float()).softmax(dim=-1)
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


class Decoder:
    """Decoding of batches with one size and capacity; its memory is reused from batch to batch.

    Args:
        model: in eval mode.
        batch_size: rows of the batches.
        capacity: largest number of tokens of a row, prompt and continuation together.
        static: give the passes static shapes; by default on a GPU, where they are then replayed as a CUDA graph.
    """

    def __init__(
        self, model: Transformer, batch_size: int, capacity: int, *, static: bool | None = None
    ):
        self._model = model
        self._device = model.cos_sin.device
        self._padding = torch.zeros(batch_size, dtype=torch.int64, device=self._device)
        is_static = self._device.type == "cuda" if static is None else static
        if is_static:
            capacity = math.ceil(capacity / CAPACITY_MULTIPLE) * CAPACITY_MULTIPLE
        kind = StaticKeyValueCache if is_static else KeyValueCache
        self._cache = kind(model.shape, capacity)
        self._recorded: dict[bool, RecordedStep] = {}  # by whether rows are padded

    @torch.inference_mode()
    def prefill(self, prompts: Tensor, padding: Tensor | None = None) -> Tensor:
        """Process prompts (B, T), of which row b begins with padding[b] padding tokens.

        Returns the logits (B, V) of the first new token.

        Raises:
            ValueError: if the batch has another size than the decoder.
        """
        if len(prompts) != len(self._padding):
            raise ValueError(
                f"{len(prompts)} prompts, but the decoder was built with batch_size={len(self._padding)}"
            )
        self._cache.clear()
        if padding is not None:
            self._padding.copy_(padding)
        self._cache.padding = None if padding is None else self._padding
        return self._model.next_logits(prompts.to(self._device), self._cache)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Process one more token (B,) per row; return the logits (B, V) of the next one.

        On a GPU the same memory is returned by every step.
        """
        cache = self._cache
        if not isinstance(cache, StaticKeyValueCache) or self._device.type != "cuda":
            return self._model.next_logits(tokens[:, None], cache)
        is_padded = cache.padding is not None
        if is_padded not in self._recorded:
            self._recorded[is_padded] = RecordedStep(self._model, cache, len(tokens))
        return self._recorded[is_padded](tokens)


class RecordedStep:
    """The pass of one new token per row, recorded once as a CUDA graph and replayed for every token."""

    def __init__(self, model: Transformer, cache: StaticKeyValueCache, batch_size: int):
        self._cache, self._length = cache, cache.length
        self._tokens = torch.zeros(batch_size, 1, dtype=torch.int64, device=cache.position.device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP_STEPS):
                model.next_logits(self._tokens, cache)
                cache.rewind(self._length)  # what the step wrote is overwritten before it is read
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = model.next_logits(self._tokens, cache)
        cache.rewind(self._length)

    def __call__(self, tokens: Tensor) -> Tensor:
        if self._cache.length >= self._cache.capacity:
            raise ValueError(f"the cache is full: its capacity is {self._cache.capacity} tokens")
        self._tokens.copy_(tokens[:, None])
        self._graph.replay()
        self._cache.length += 1  # the graph advances only the position on the GPU
        return self._logits


def generate(
    model: Transformer,
    prompt: Tensor,
    new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop: Collection[int] = (),
) -> Tensor:
    """Return the prompt (B, T) followed by up to new_tokens generated tokens per row.

    Args:
        model: a model in eval mode.
        prompt: token ids (B, T).
        new_tokens: largest number of tokens to generate per row.
        temperature: 0 is greedy decoding; see `Sampling`.
        top_k: see `Sampling`.
        top_p: see `Sampling`.
        seed: of the random numbers.
        stop: tokens that end a row, such as the end-of-text token. The rest of such a row repeats the token, and
            generation stops when all rows have ended.

    Raises:
        ConfigError: listing every invalid value, before anything is computed.
    """
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    steps = list(stream(model, prompt, new_tokens, sampling=sampling, stop=stop))
    return torch.cat([prompt, torch.stack(steps, dim=1).to(prompt.device)], dim=1)


def generate_batch(
    model: Transformer,
    prompts: Sequence[Tensor],
    new_tokens: int,
    *,
    sampling: Sampling | None = None,
    stop: Collection[int] = (),
) -> list[Tensor]:
    """Return the continuation of each prompt, a sequence (T,) of any length; the stop token is left out.

    Shorter prompts are padded on the left; their greedy continuations equal those of the prompts alone up to
    rounding of the logits.

    Raises:
        ConfigError: listing every invalid value, before anything is computed.
    """
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise ConfigError([Problem("prompt", "", "has no tokens", "give each at least one token")])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    padded = torch.stack([F.pad(prompt, (longest - len(prompt), 0)) for prompt in prompts])
    padding = longest - lengths if bool((lengths < longest).any()) else None
    steps = stream(model, padded, new_tokens, padding=padding, sampling=sampling, stop=stop)
    rows = torch.stack(list(steps), dim=1).cpu()
    return [_until_stop(row, stop) for row in rows]


def stream(
    model: Transformer,
    prompt: Tensor,
    new_tokens: int,
    *,
    padding: Tensor | None = None,
    sampling: Sampling | None = None,
    stop: Collection[int] = (),
    decoder: Decoder | None = None,
) -> Iterator[Tensor]:
    """Yield the new tokens (B,) of each step, at most `new_tokens` times.

    Row b of the prompt (B, T) begins with padding[b] padding tokens. A `decoder` is reused; by
    default one is built. See `generate` for the other arguments.

    Raises:
        ConfigError: listing every invalid value, before anything is computed and before the first step.
        DataError: if the logits of the prompt are not finite.
    """
    sampling = sampling or Sampling()
    check_request(model, prompt, new_tokens, sampling)
    batch, length = prompt.shape
    decoder = decoder or Decoder(model, batch, length + new_tokens)
    logits = decoder.prefill(prompt, padding)
    if not bool(logits.isfinite().all()):
        raise DataError("the model's logits are not finite: its weights are damaged")
    return _steps(decoder, logits, new_tokens, sampling, stop)


def check_request(model: Transformer, prompt: Tensor, new_tokens: int, sampling: Sampling) -> None:
    """Raise a ConfigError that lists every invalid value."""
    problems = list(sampling.problems())
    if prompt.ndim != 2 or prompt.numel() == 0:
        rule = "must have the shape (batch, tokens), with at least one token"
        problems.append(Problem("prompt", tuple(prompt.shape), rule))
        raise ConfigError(problems)
    vocab_size, seq_len = model.shape.vocab_size, model.shape.seq_len
    lowest, highest = int(prompt.min()), int(prompt.max())
    if lowest < 0 or highest >= vocab_size:
        token = lowest if lowest < 0 else highest
        rule = f"is no token of the vocabulary, which has the ids 0 to {vocab_size - 1}"
        problems.append(Problem("prompt", token, rule, "use the tokenizer of the model"))
    if new_tokens < 1:
        problems.append(Problem("new_tokens", new_tokens, "must be at least 1"))
    elif prompt.shape[1] + new_tokens > seq_len:
        rule = (
            f"with {prompt.shape[1]} tokens of the prompt it exceeds the model's seq_len={seq_len}"
        )
        fits = seq_len - prompt.shape[1]
        fix = f"use new_tokens={fits} or fewer" if fits > 0 else "shorten the prompt"
        problems.append(Problem("new_tokens", new_tokens, rule, fix))
    if problems:
        raise ConfigError(problems)


def _steps(
    decoder: Decoder,
    logits: Tensor,
    new_tokens: int,
    sampling: Sampling,
    stop: Collection[int],
) -> Iterator[Tensor]:
    generator = None
    if sampling.temperature > 0:
        generator = torch.Generator(logits.device).manual_seed(sampling.seed)
    ends = torch.tensor(sorted(stop), device=logits.device)
    last = has_ended = None
    for number in range(1, new_tokens + 1):
        tokens = sampling.choose(logits, generator)
        if len(ends):
            if last is not None and has_ended is not None:
                tokens = torch.where(has_ended, last, tokens)
            last, has_ended = tokens, torch.isin(tokens, ends)
        yield tokens
        if number == new_tokens or (has_ended is not None and bool(has_ended.all())):
            return
        logits = decoder.step(tokens)


def _until_stop(row: Tensor, stop: Collection[int]) -> Tensor:
    ends = torch.isin(row, torch.tensor(sorted(stop), dtype=row.dtype)).nonzero()
    return row[: int(ends[0])] if len(ends) else row
