"""Greedy decoding of the 125M shape in bf16 at batch 1: the recorded step, against transformers' default generate."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from slm.evaluation.load import load_model
from slm.evaluation.speed import measure_inference
from slm.model.generate import Decoder
from tests.benchmarks.acceptance.measuring import free_memory, preset_spec
from tests.benchmarks.acceptance.rows import Options, Rows
from tests.benchmarks.decode import their_generate
from tests.benchmarks.peers import Mode, export_weights, is_installed

PROMPT_TOKENS, NEW_TOKENS, ROUNDS = 64, 128, 5
QUICK_PROMPT_TOKENS, QUICK_NEW_TOKENS, QUICK_ROUNDS = 4, 6, 1
RATIO_FLOOR = 5.0  # slm / transformers, whole calls
LOGIT_TOLERANCE = 0.1  # of the standard deviation of the logits, in bf16


def run(options: Options, rows: Rows) -> None:
    free_memory(options)
    dtype = "bf16" if options.on_gpu else "fp32"
    spec = preset_spec(options, "125m", Mode(dtype, False), 1)
    folder = options.folder / "decode"
    export_weights(spec, folder)
    prompt_tokens = QUICK_PROMPT_TOKENS if options.quick else PROMPT_TOKENS
    new_tokens = QUICK_NEW_TOKENS if options.quick else NEW_TOKENS
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    model = load_model(folder).to(
        options.device, torch.bfloat16 if options.on_gpu else torch.float32
    )
    size = (1, prompt_tokens)
    prompt = torch.randint(spec.shape.vocab_size, size, generator=torch.manual_seed(0))
    prompt = prompt.to(options.device)

    decoders = [Decoder(model, 1, prompt_tokens + new_tokens, static=s) for s in (False, True)]
    logits = [decoder.prefill(prompt) for decoder in decoders]
    largest = 0.0
    for _ in range(new_tokens - 1):
        tokens = logits[0].argmax(-1)
        logits = [decoder.step(tokens) for decoder in decoders]
        first, second = (each.float() for each in logits)
        largest = max(largest, float((first - second).abs().max() / first.std()))
    note = "largest difference in standard deviations of the logits"
    rows.check("static step against dynamic step", largest, at_most=LOGIT_TOLERANCE, note=note)

    measured = measure_inference(
        model, prompt_tokens=prompt_tokens, new_tokens=new_tokens, dtype=dtype, rounds=rounds
    )
    rows.measured("decoding", measured.decode_tokens_per_second, "tokens/s")
    rows.measured("first token", 1e3 * measured.time_to_first_token_seconds, "ms")
    if not is_installed("transformers"):
        rows.skipped("transformers generate", "transformers is not installed")
        return
    theirs = their_generate(folder, dtype, options.device)
    contenders = {
        "slm": lambda: model.generate(prompt, new_tokens),
        "transformers": lambda: theirs(prompt, new_tokens),
    }
    seconds = _alternate(contenders, rounds)
    for name, values in seconds.items():
        rows.measured(f"{name}: whole call", 1e3 * statistics.median(values), "ms")
    pairs = zip(seconds["transformers"], seconds["slm"], strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    rows.check("transformers / slm", ratio, at_least=None if options.quick else RATIO_FLOOR)


def _alternate(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each call in every round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start_seconds = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start_seconds)
    return {name: values[1:] for name, values in seconds.items()}
