"""`python -m slm prepare`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from json import dumps

from slm.config.hydra import compose_config
from slm.data.tokens.prepare import prepare as prepare_data
from slm.data.tokens.summary import print_data_summary, summarize_data


def prepare(overrides: Sequence[str], *, json: bool) -> None:
    """Tokenize the corpus of a config, unless this was done before, and print a summary."""
    config = compose_config(overrides)
    if config.data.source == "khop":
        print("data=khop is generated during training: nothing to prepare")
        return
    data = prepare_data(config, lambda text: print(text, file=sys.stderr), progress=True)
    if json:
        print(dumps(summarize_data(data), indent=2))
    else:
        print_data_summary(data)
