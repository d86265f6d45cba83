"""The module in a lightning.Trainer, as docs/lightning.md shows it, against the training loop."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from slm.data.examples import open_examples
from slm.run.spec import RunSpec
from slm.training.batches import TrainingBatches
from slm.training.step import build_module
from tests.conftest import ROOT
from tests.running import losses, run_to_end

pytestmark = pytest.mark.numeric


class Record(Callback):
    """Loss and learning rate of each step."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        self._peak_group_lr = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.rows.append((float(trainer.callback_metrics["train/loss"]), self._peak_group_lr))


def test_code_of_the_page_runs(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "lightning.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    small = code.replace("budget.tokens=200k", f'budget.tokens=20480", "cache_dir={cache_dir}')
    assert small != code
    monkeypatch.chdir(tmp_path)  # the Trainer writes its logs here
    names: dict[str, Any] = {}
    exec(compile(small, "docs/lightning.md", "exec"), names)
    assert names["trainer"].global_step == names["spec"].steps == 5


@pytest.mark.parametrize(
    "settings", [{}, {"model": {"tied": False}, "optimizer": {"z_loss": 1e-3}}], ids=["plain", "z"]
)
def test_trainer_takes_the_steps_of_the_loop(
    tiny_spec: Callable[..., RunSpec], tmp_path: Path, settings: dict[str, Any]
) -> None:
    spec = tiny_spec(**settings)
    run, _ = run_to_end(spec)
    examples = open_examples(spec.config, spec.shape.seq_len)
    batches = TrainingBatches(examples, spec.config.seed, spec.batch_sequences)
    recorded = Record()
    trainer = Trainer(
        max_steps=spec.steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[recorded],
    )
    trainer.fit(build_module(spec), DataLoader(batches, batch_size=None, sampler=range(spec.steps)))
    ours = [(loss, lr) for loss, _, lr in losses(run)]
    assert len(recorded.rows) == len(ours) == spec.steps
    np.testing.assert_allclose(recorded.rows, ours, rtol=1e-6)
