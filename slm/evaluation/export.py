"""Export of trained models to the formats of other programs."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from slm.data.tokenizers.export import save_for_transformers
from slm.errors import DataError
from slm.evaluation.load import load_run, load_tokenizer_of
from slm.model.hf import export_llama


def export(run: Path, out: Path) -> None:
    """Save the model and tokenizer of a run in the format of transformers."""
    export_run(run, out)
    print(f"exported {run} to {out}")


def export_run(run: Path, out: Path) -> None:
    """Write a run's model and tokenizer to a folder that `transformers` can load.

    Raises:
        DataError, RunError: if the run cannot be read, or `out` is not empty.
    """
    model = load_run(run)
    if out.exists() and any(out.iterdir()):
        raise DataError(f"out={out}: the folder is not empty; choose a new one")
    tokenizer = load_tokenizer_of(run)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        complete = Path(temporary) / "complete"
        export_llama(model, complete, tokenizer.eot_id)
        save_for_transformers(tokenizer, complete)
        complete.replace(out)  # allowed if `out` is an empty folder
