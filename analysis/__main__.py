"""Analyze finished runs and write a report: python -m analysis RUNS --out DIR."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from analysis.report.by_kind import Kind, write_report_of
from analysis.report.write import write_report
from analysis.runs.load import WANDB
from slm.errors import SlmError


def main() -> int:
    """Run the command, and return its exit code."""
    parser = _parser()
    arguments = parser.parse_args()
    if (arguments.runs is None) == (arguments.wandb is None):
        parser.error("give either RUNS or --wandb ENTITY/PROJECT")
    if arguments.wandb is not None and arguments.of != "families":
        parser.error(
            f"--wandb works only with --of families; give a folder of runs for --of {arguments.of}"
        )
    try:
        if arguments.of != "families":
            write_report_of(arguments.of, arguments.runs, arguments.out)
        else:
            deep, wide = arguments.contrast or (arguments.deep, arguments.wide)
            write_report(
                arguments.runs or f"{WANDB}{arguments.wandb}",
                arguments.out,
                deep=deep,
                wide=wide,
                audit=arguments.audit,
                question=arguments.question,
                pool_validation_sets=arguments.pool_validation_sets,
            )
    except SlmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"cannot read or write {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m analysis", description=__doc__)
    parser.add_argument(
        "runs",
        type=Path,
        nargs="?",
        help="a folder of run directories, such as runs/demo; a folder of offline W&B runs; a study's file "
        "of results; or a .csv, .parquet or .jsonl table",
    )
    parser.add_argument(
        "--wandb", metavar="ENTITY/PROJECT", help="read the runs of a W&B project instead of RUNS"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write the report to")
    parser.add_argument(
        "--deep",
        help="the family to compare as deep; default: the one with the smallest d_model/n_layers",
    )
    parser.add_argument(
        "--wide",
        help="the family to compare as wide; default: the one with the largest d_model/n_layers",
    )
    parser.add_argument(
        "--contrast", metavar="DEEP,WIDE", type=_family_pair, help="--deep and --wide in one option"
    )
    parser.add_argument(
        "--audit",
        type=Path,
        metavar="FILE",
        help="learning-rate audit: lr_audit.json of study=lr_audit, or a folder of runs over a grid of "
        "learning rates; if a family fails the audit, there is no verdict",
    )
    parser.add_argument(
        "--question", default="", help="research question, printed at the top of the report"
    )
    parser.add_argument(
        "--of",
        choices=("families", *get_args(Kind)),
        default="families",
        help="report to write. families: comparison of two families; lr_transfer: optimal learning rate per "
        "shape; lr_audit: penalty of the middle learning rate of the grid per family; khop: error rate by "
        "number of hops; coordinates: growth of updates with width and depth (RUNS is then the file of a "
        "coordinate check)",
    )
    parser.add_argument(
        "--pool-validation-sets",
        action="store_true",
        help="compare runs with different validation sets; default: use only the runs with the most common "
        "validation set",
    )
    return parser


def _family_pair(text: str) -> tuple[str, str]:
    names = text.split(",")
    if len(names) != 2:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be two family names separated by a comma: DEEP,WIDE"
        )
    return names[0], names[1]


if __name__ == "__main__":
    sys.exit(main())
