"""Rows of models.csv, a table of runs that `python -m analysis` reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from slm.architecture.flops import flop_equivalent_params
from slm.architecture.shapes import shape_key
from slm.evaluation.models import CHECKPOINT
from slm.evaluation.result import ModelScores
from slm.evaluation.zero_shot.score import TaskScore
from slm.run.lr_schedule import is_decayed
from slm.tracking.result import RunResult
from slm.tracking.speeds import InferenceSpeed


def csv_rows(models: Sequence[ModelScores]) -> list[dict[str, Any]]:
    """Return one row per model with the same keys; what is unknown is None.

    Columns of a run have the names and values of `analysis.load_runs`. A checkpoint has the state `checkpoint`, so
    that the analysis of runs leaves it out.
    """
    rows = [_csv_row(scores) for scores in models]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]


def csv_text(models: Sequence[ModelScores]) -> str:
    rows = csv_rows(models)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _csv_row(scores: ModelScores) -> dict[str, Any]:
    model, shape = scores.model, scores.model.shape
    row: dict[str, Any] = {
        "name": model.name,
        "folder": str(model.path),
        "state": model.state,
        "run_id": None if model.state == CHECKPOINT else model.path.resolve().name,
        "family": model.family,
        "shape": shape.label,
        "model_shape": shape_key(shape.as_dict()),
        "n_layers": shape.n_layers,
        "d_model": shape.d_model,
        "aspect_ratio": shape.aspect_ratio,
        "seed": model.seed,
        "params_total": scores.params_total,
        "params_non_embedding": scores.params_non_embedding,
        **({} if model.result is None else _run_columns(model.result)),
    }
    if scores.text is not None:
        whole = scores.text.all.as_dict()
        names = "perplexity", "nats_per_token", "bits_per_byte"
        row |= {f"text_{name}" if name == "nats_per_token" else name: whole[name] for name in names}
        row |= {
            "bits_per_byte_se": scores.text.bits_per_byte_se,
            "text_tokens": whole["tokens"],
            "text_bytes": whole["text_bytes"],
            "window": scores.text.window,
            "stride": scores.text.stride,
            "text_fingerprint": scores.text.fingerprint,
        }
    for task in scores.tasks:
        row |= _task_columns(task)
    return row | ({} if scores.speed is None else _speed_columns(scores.speed))


def _run_columns(result: RunResult) -> dict[str, Any]:
    shape, schedule = result.shape, result.schedule
    settings = ("tied", "mlp", "qk_norm", "layer_sharing", "d_head")
    n_flop = flop_equivalent_params(result.flops_per_token)
    return {
        "study": result.study,
        "recipe_id": result.recipe_id,
        "rung": result.rung,
        "size": result.size or round(flop_equivalent_params(result.reference_flops_per_token)),
        "architecture": ", ".join(f"{key}={shape[key]}" for key in settings),
        "flops_per_token": result.flops_per_token,
        "tokens": result.tokens,
        "flops": result.flops,
        "n_flop": n_flop,
        "tokens_per_param": float(f"{result.tokens_per_param:.3g}"),
        "schedule": schedule["kind"],
        "decayed": is_decayed(schedule),
        "reference_flops_per_token": result.reference_flops_per_token,
        "warmup_tokens": schedule.get("warmup_tokens"),
        "epochs": result.epochs,
        "peak_lr": result.peak_lr,
        "parametrization": result.parametrization,
        "taken_over_steps": result.taken_over_steps,
        "loss_spikes": len(result.loss_spikes),
        "batch_tokens": result.batch_tokens,
        "precision": result.precision,
        "loss_nats_per_token": result.val_loss_nats_per_token,
        "val_bits_per_byte": result.val_bits_per_byte,
        "val_tokens": result.val_tokens,
        "val_fingerprint": result.val_fingerprint,
        "tokens_per_second": result.tokens_per_second,
        "commit": result.commit,
    }


def _task_columns(task: TaskScore) -> dict[str, Any]:
    columns = {
        "bits_per_byte": task.bits_per_byte,
        "bits_per_byte_se": task.bits_per_byte_se,
        **task.metrics,
        "examples": task.examples,
        "fingerprint": task.fingerprint,
    }
    return {f"{task.task}_{name}": value for name, value in columns.items()}


def _speed_columns(speed: InferenceSpeed) -> dict[str, Any]:
    return {
        "decode_tokens_per_second": speed.decode_tokens_per_second,
        "prefill_tokens_per_second": speed.prefill_tokens_per_second,
        "time_to_first_token_seconds": speed.time_to_first_token_seconds,
        "peak_memory_bytes": speed.peak_memory_bytes,
    }
