"""Results of an evaluation: one `ModelScores` per model, and an `Evaluation` of all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm.architecture.memory import format_bytes
from slm.architecture.shapes import count_parameters
from slm.evaluation.models import Model
from slm.evaluation.perplexity import Score, bits_per_byte_se, total
from slm.evaluation.protocols import Settings
from slm.evaluation.zero_shot.score import TaskScore
from slm.formatting import count, short_count
from slm.summary import Rows, Summarized
from slm.tracking.speeds import InferenceSpeed

if TYPE_CHECKING:
    from slm.evaluation.zero_shot.compare import Difference

SCHEMA_VERSION = 1
PER_PARAMS = 100_000_000  # of the perplexity gain, as in the seed's table
MIN_PARAMS_ADDED = 1_000_000  # fewer are too few for a gain per 100 million


@dataclass(frozen=True, kw_only=True, repr=False)
class TextScore(Summarized):
    """Scores of one model on all documents of a text.

    Attributes:
        documents: scores of each document.
        window, stride: length of a window, and distance of two windows, in tokens.
        fingerprint: short hash of what was scored: texts, document unit, window, stride and start token.
    """

    documents: tuple[Score, ...]
    window: int
    stride: int
    fingerprint: str = ""

    @property
    def is_lossless(self) -> bool:
        """Whether the tokens decode to the text; if not, bits per byte are approximate."""
        return self.all.is_lossless

    @property
    def all(self) -> Score:
        return total(self.documents)

    @property
    def bits_per_byte_se(self) -> float | None:
        """Standard error over documents; None for one document."""
        return bits_per_byte_se(self.documents)

    def title(self) -> str:
        return self.all.title()

    def as_dict(self, *, with_documents: bool = False) -> dict[str, Any]:
        whole = self.all.as_dict()
        values: dict[str, Any] = {
            **{key: value for key, value in whole.items() if key != "name"},
            "bits_per_byte_se": self.bits_per_byte_se,
            "documents": len(self.documents),
            "window": self.window,
            "stride": self.stride,
            "is_lossless": self.is_lossless,
            "fingerprint": self.fingerprint,
        }
        if with_documents:
            values["document_scores"] = [score.as_dict() for score in self.documents]
        return values


@dataclass(frozen=True, kw_only=True, repr=False)
class ModelScores(Summarized):
    """Everything that was measured for one model; what was not requested is None or empty."""

    model: Model
    text: TextScore | None = None
    tasks: tuple[TaskScore, ...] = ()
    speed: InferenceSpeed | None = None

    @property
    def params_total(self) -> int:
        return count_parameters(self.model.shape).params_total

    @property
    def params_non_embedding(self) -> int:
        return count_parameters(self.model.shape).params_non_embedding

    def title(self) -> str:
        return f"{self.model.label}: {short_count(self.params_total)} parameters"

    def details(self) -> Iterator[tuple[str, str]]:
        yield "without embeddings", short_count(self.params_non_embedding)
        if self.text is not None:
            yield "text", self.text.title()
        for task in self.tasks:
            yield task.task, ", ".join(f"{k} {v:.4g}" for k, v in task.metrics.items())
        if self.speed is not None:
            yield "decoding", f"{self.speed.decode_tokens_per_second:.1f} tokens/s"
            if self.speed.peak_memory_bytes is not None:
                yield "peak memory", format_bytes(self.speed.peak_memory_bytes)

    def as_dict(self, *, with_documents: bool = False) -> dict[str, Any]:
        model = self.model
        return {
            "name": model.name,
            "folder": str(model.path),
            "family": model.family,
            "state": model.state,
            "seed": model.seed,
            "shape": model.shape.as_dict(),
            "params_total": self.params_total,
            "params_non_embedding": self.params_non_embedding,
            "text": None if self.text is None else self.text.as_dict(with_documents=with_documents),
            "tasks": [_task_as_dict(task) for task in self.tasks],
            "speed": None if self.speed is None else _speed_as_dict(self.speed),
        }


@dataclass(frozen=True)
class Gain:
    """Perplexity gain from a model to the next larger one."""

    smaller: str
    larger: str
    params_added: int
    perplexity_gain: float
    """Perplexity of the smaller minus that of the larger model."""

    @property
    def per_100m(self) -> float:
        """Perplexity gain per 100 million parameters."""
        return self.perplexity_gain / self.params_added * PER_PARAMS


@dataclass(frozen=True)
class Failure:
    """A model that could not be evaluated, and why."""

    model: Model
    reason: str


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation(Summarized):
    """Scores of several models with the same settings.

    Attributes:
        settings: what was measured, and how.
        device: name of the GPU, or of the CPU with its number of threads.
        models: scores in the order of the models.
        failures: models that could not be evaluated.
        date: time of the start, ISO 8601 in UTC.
        slm_version: version of slm.
    """

    settings: Settings
    device: str
    models: tuple[ModelScores, ...]
    failures: tuple[Failure, ...] = ()
    date: str = ""
    slm_version: str = ""

    def title(self) -> str:
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"{count(len(self.models), 'model')} evaluated{failed}"

    def details(self) -> Iterator[tuple[str, str]]:
        for scores in self.models:
            parts = [short_count(scores.params_total)]
            if scores.text is not None:
                whole = scores.text.all
                parts += [
                    f"perplexity {whole.perplexity:.4g}",
                    f"{whole.bits_per_byte:.4f} bits/byte",
                ]
            if scores.speed is not None:
                parts.append(f"{scores.speed.decode_tokens_per_second:.1f} tokens/s")
            yield scores.model.label, ", ".join(parts)
        for failure in self.failures:
            yield failure.model.label, f"failed: {failure.reason}"

    def rows(self) -> Rows:
        """Return one row per model."""
        from slm.evaluation.run_table import csv_rows  # which needs the classes of this module

        rows = csv_rows(self.models)
        return [{key: _shown(value) for key, value in row.items()} for row in rows]

    @property
    def same_tokens(self) -> bool:
        """Whether all models score the same number of tokens and bytes, so that perplexities can be compared."""
        sums = {
            (scores.text.all.tokens, scores.text.all.text_bytes)
            for scores in self.models
            if scores.text is not None
        }
        return len(sums) <= 1

    def gains(self) -> list[Gain]:
        """Return the perplexity gains between neighbours in size (`perplexity_gains`)."""
        return perplexity_gains(self.models)

    def comparisons(self) -> list[tuple[str, Difference]]:
        """Return the label of each model but the first, with its differences to the first on the same tasks."""
        from slm.evaluation.zero_shot.compare import compare_models  # imports scipy

        scored = [scores for scores in self.models if scores.tasks]
        return [
            (scores.model.label, difference)
            for scores in scored[1:]
            for difference in compare_models(scored[0].tasks, scores.tasks)
        ]

    def as_dict(self, *, with_documents: bool = False) -> dict[str, Any]:
        """Return values for JSON; numbers that are not finite are None."""
        values = {
            "schema_version": SCHEMA_VERSION,
            "date": self.date,
            "slm_version": self.slm_version,
            "settings": self.settings.as_dict(),
            "device": self.device,
            "models": [model.as_dict(with_documents=with_documents) for model in self.models],
            "perplexity_gains": [
                {**asdict(gain), "perplexity_gain_per_100m_params": gain.per_100m}
                for gain in self.gains()
            ],
            "comparisons": [
                {"model": label, **asdict(difference), "interval_95": difference.interval}
                for label, difference in self.comparisons()
            ],
            "failures": [
                {"name": failure.model.name, "reason": failure.reason} for failure in self.failures
            ],
        }
        finite: dict[str, Any] = _finite(values)
        return finite


def perplexity_gains(models: Sequence[ModelScores]) -> list[Gain]:
    """Return the gains between neighbours in size, as in the seed's table.

    Neighbours are of one family, seed and `tokens_per_param`, and score the same number of tokens: perplexities of
    other tokenizers are not comparable. The size is `params_total`.
    """
    groups: dict[tuple[object, ...], list[ModelScores]] = {}
    for scores in models:
        if scores.text is not None:
            result = scores.model.result
            ratio = None if result is None else f"{result.tokens_per_param:.3g}"
            whole = scores.text.all
            key = scores.model.family, scores.model.seed, ratio, whole.tokens, whole.text_bytes
            groups.setdefault(key, []).append(scores)
    return [
        Gain(
            small.model.label,
            large.model.label,
            large.params_total - small.params_total,
            _perplexity(small) - _perplexity(large),
        )
        for group in groups.values()
        for small, large in pairwise(sorted(group, key=lambda scores: scores.params_total))
        if large.params_total > small.params_total
    ]


def _perplexity(scores: ModelScores) -> float:
    assert scores.text is not None
    return scores.text.all.perplexity


def samples_of(scores: ModelScores) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """Yield the file below samples/ and the rows of each task, and of the documents of the text."""
    if scores.text is not None:
        rows = [score.as_dict() for score in scores.text.documents]
        yield Path(scores.model.name) / "documents.jsonl", rows
    for task in scores.tasks:
        yield Path(scores.model.name) / f"{task.task}.jsonl", [dict(row) for row in task.samples]


def _task_as_dict(task: TaskScore) -> dict[str, Any]:
    return {
        "task": task.task,
        "examples": task.examples,
        "fingerprint": task.fingerprint,
        "bits_per_byte": task.bits_per_byte,
        "bits_per_byte_se": task.bits_per_byte_se,
        "metrics": dict(task.metrics),
        "chance": task.chance,
    }


def _speed_as_dict(speed: InferenceSpeed) -> dict[str, Any]:
    names = "decode_tokens_per_second", "prefill_tokens_per_second", "time_to_first_token_seconds"
    return {**asdict(speed), **{name: getattr(speed, name) for name in names}}


def _finite(value: Any) -> Any:
    """Replace nan and infinities, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    is_number = isinstance(value, float)
    return None if is_number and not math.isfinite(value) else value


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
