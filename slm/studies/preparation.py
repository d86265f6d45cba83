"""Preparation of a study's corpora by the process of the sweep, before it starts any cell."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from slm.data.tokens.prepare import prepare, prepared_folder
from slm.errors import DesignRefused
from slm.studies.cells import Cell
from slm.studies.plan_tables import list_epoch_refusals

log = logging.getLogger("slm")


def prepare_corpora(cells: Sequence[Cell]) -> None:
    """Prepare the corpora of the cells to train, so that an error in the data is reported once.

    Raises:
        DataError: if a corpus cannot be read; no cell has started then.
        DesignRefused: if cells would repeat the text more often than data.max_epochs.
    """
    configs = [c.spec.config for c in cells if c.spec.config.rerun or not c.is_done]
    corpora = {
        prepared_folder(config): config for config in configs if config.data.source != "khop"
    }
    for config in corpora.values():
        prepare(config, log.info)
    refusals = list_epoch_refusals(cells) if corpora else []
    if refusals:
        raise DesignRefused("\n".join(f"REFUSED {line}" for line in refusals))
