"""python -m slm COMMAND: what is done with shapes and trained models, beside training them.

describe [key=value ...] [--json]    a shape's parameters, FLOPs and memory; keys as for train.py
prepare [key=value ...] [--json]     data=... tokenizer=...: the tokens of a corpus, once; keys as for train.py
evaluate run=DIR text=FILES          perplexity and bits per byte of any text (.txt, .jsonl, .parquet)
    hf=DIR                           instead of run=: a Llama-format folder with its tokenizer.json
    window=1024 stride=512           tokens a window, and between their beginnings (run's seq_len, half of it)
    document=file|paragraph|line  column=text  start_token=true|false  --documents  --json
export run=DIR out=DIR               a run's model and tokenizer, for transformers
coordinates out=FILE                 coordinate checks of all parametrizations, as JSON
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from slm.errors import ConfigError, Problem, nearest


def describe(arguments: Sequence[str]) -> None:
    from slm.architecture.describe import describe as described
    from slm.architecture.describe import print_description
    from slm.config.hydra import compose_config
    from slm.run.micro_batch import micro_batch_of, planned_accelerator
    from slm.run.spec import resolve

    config = compose_config([a for a in arguments if a != "--json"])
    spec = resolve(config)
    micro_batch = micro_batch_of(spec, planned_accelerator(config))
    if "--json" in arguments:
        memory = micro_batch.as_dict()
        described_all = {"family": config.family.name, **described(spec.shape), "memory": memory}
        print(json.dumps(described_all, indent=2))
    else:
        print_description(
            config.family.name, described(spec.shape), micro_batch.plan, micro_batch.in_words
        )


def prepare(arguments: Sequence[str]) -> None:
    from slm.config.hydra import compose_config
    from slm.data.tokens.prepare import prepare as prepared
    from slm.data.tokens.summary import print_data_summary, summarize_data

    config = compose_config([a for a in arguments if a != "--json"])
    if config.data.source == "khop":
        print("data=khop is computed when it is needed: there is nothing to prepare")
        return
    data = prepared(config, _say, progress=True)
    if "--json" in arguments:
        print(json.dumps(summarize_data(data), indent=2))
    else:
        print_data_summary(data)


def evaluate(arguments: Sequence[str]) -> None:
    flags = {"--documents", "--json"}
    given = _settings(
        [a for a in arguments if a not in flags],
        needed=("text",),
        optional=("run", "hf", "window", "stride", "document", "column", "start_token"),
    )
    from slm.evaluation.cli import evaluate_text, print_scores

    scores = evaluate_text(given)
    if "--json" in arguments:
        print(json.dumps([score.as_dict() for score in scores], indent=2))
    else:
        print_scores(scores, documents="--documents" in arguments)


def export(arguments: Sequence[str]) -> None:
    given = _settings(arguments, needed=("run", "out"))
    from slm.evaluation.load import export_run

    export_run(Path(given["run"]), Path(given["out"]))
    print(f"exported {given['run']} to {given['out']}")


def coordinates(arguments: Sequence[str]) -> None:
    out = Path(_settings(arguments, needed=("out",))["out"])
    from slm.training.coordinates import write_coordinates

    write_coordinates(out)
    print(f"wrote {out}; python -m analysis {out} --of coordinates --out DIR draws it")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "describe": describe,
    "prepare": prepare,
    "evaluate": evaluate,
    "export": export,
    "coordinates": coordinates,
}


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _settings(
    arguments: Sequence[str], *, needed: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, str]:
    """key=value of the given keys, and of no others.

    Raises:
        ConfigError: listing everything that is wrong with them.
    """
    keys = (*needed, *optional)
    given = {}
    problems = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        near = get_close_matches(key, keys, n=1) or keys
        if key in keys and value:
            given[key] = value
        elif key in keys:
            problems.append(Problem(key, value, "needs a value"))
        else:
            problems.append(Problem(key, value, "unknown key", f"did you mean {near[0]}?"))
    problems += [
        Problem(key, None, "is needed", f"for example {key}=some/folder")
        for key in needed
        if key not in given and key not in {p.key for p in problems}
    ]
    if problems:
        raise ConfigError(problems)
    return given


def main() -> NoReturn:
    command, arguments = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if {command, *arguments} & {"--help", "-h"} or command == "help":
        print(__doc__)
        sys.exit(0)
    if command not in COMMANDS:
        fix = nearest(command, COMMANDS)
        print(f"python -m slm {command}: no such command; {fix}", file=sys.stderr)
        sys.exit(ConfigError.exit_code)
    from slm.cli import run_and_exit

    run_and_exit(lambda: COMMANDS[command](arguments))


if __name__ == "__main__":
    main()
