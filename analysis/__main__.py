"""Entry point of `python -m analysis`: analyze finished runs and write a report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from slm.errors import SlmError, describe_os_error, nearest
from slm.help_text import HelpFormatter, examples, listing
from slm.stdout import exit_when_stdout_closes

FAMILIES = "families"
REPORTS = {
    FAMILIES: "comparison of two families",
    "lr_transfer": "optimal learning rate of each shape",
    "lr_audit": "loss penalty of the middle learning rate of the grid, per family",
    "khop": "error rate by number of hops",
    "coordinates": "growth of updates with width and depth; RUNS is the file of a coordinate check",
}
EXAMPLES = (
    "python -m analysis runs/demo --out report",
    "python -m analysis runs.csv --out report --contrast deep_thin,wide_shallow",
    "python -m analysis evaluation/models.csv --out report --metric arc_easy_bits_per_byte",
    "python -m analysis --wandb ENTITY/PROJECT --out report",
    "python -m analysis runs/lr_transfer --of lr_transfer --out report",
)


def main() -> int:
    """Run the command, and return its exit code."""
    with exit_when_stdout_closes():
        parser, family_options = _build_parser()
        arguments = parser.parse_args()
        _check(parser, family_options, arguments)
        try:
            _write_report(arguments)
        except SlmError as error:
            print(error, file=sys.stderr)
            return error.exit_code
        except BrokenPipeError:
            raise
        except OSError as error:
            print(describe_os_error(error), file=sys.stderr)
            return 1
        return 0


def _write_report(arguments: argparse.Namespace) -> None:
    if arguments.of != FAMILIES:
        from analysis.report.by_kind import write_report_of  # late: imports pandas

        write_report_of(arguments.of, arguments.runs, arguments.out)
        return
    from analysis.report.write import write_report
    from analysis.runs.load import WANDB

    deep, wide = arguments.contrast or (arguments.deep, arguments.wide)
    write_report(
        arguments.runs or f"{WANDB}{arguments.wandb}",
        arguments.out,
        deep=deep,
        wide=wide,
        audit=arguments.audit,
        question=arguments.question,
        pool_validation_sets=arguments.pool_validation_sets,
        metric=arguments.metric,
        speed=arguments.speed,
    )


def _check(
    parser: argparse.ArgumentParser,
    family_options: list[argparse.Action],
    arguments: argparse.Namespace,
) -> None:
    """Exit with a message if the options do not fit each other."""
    given = vars(arguments)
    if (arguments.runs is None) == (arguments.wandb is None):
        parser.error("give either RUNS or --wandb ENTITY/PROJECT")
    if arguments.contrast and (arguments.deep or arguments.wide):
        parser.error("give either --contrast, or --deep and --wide")
    if arguments.audit and arguments.metric:
        parser.error("--audit: measures the loss, so give it without --metric")
    if arguments.of == FAMILIES:
        return
    if arguments.wandb is not None:
        parser.error(f"--of {arguments.of} cannot read --wandb; give a folder of runs")
    unused = [o.option_strings[0] for o in family_options if given[o.dest] != o.default]
    if unused:
        parser.error(
            f"{', '.join(unused)}: --of {arguments.of} has no such option; only {FAMILIES} does"
        )


def _build_parser() -> tuple[argparse.ArgumentParser, list[argparse.Action]]:
    """Return the parser, and the options that only the report `families` has."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis",
        usage="python -m analysis RUNS|--wandb ENTITY/PROJECT --out DIR [--of REPORT] [options]",
        description="Analyze finished runs and write a report.",
        epilog=f"{listing('reports, for --of', REPORTS)}\n\n{examples(EXAMPLES)}",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    source = parser.add_argument_group("input: one of")
    source.add_argument(
        "runs",
        metavar="RUNS",
        type=Path,
        nargs="?",
        help="folder of run directories, such as runs/demo; folder of offline W&B runs; results file of a study "
        "(.jsonl); or a .csv, .parquet or .jsonl table with one row per run",
    )
    source.add_argument("--wandb", metavar="ENTITY/PROJECT", help="read the runs of a W&B project")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="folder to write the report to"
    )
    output.add_argument(
        "--of",
        metavar="REPORT",
        type=_report_name,
        default=FAMILIES,
        help=f"report to write, see below; default: {FAMILIES}",
    )
    return parser, _add_family_options(parser)


def _add_family_options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    group = parser.add_argument_group(f"comparison, for --of {FAMILIES} only")
    add: Any = group.add_argument
    return [
        add("--deep", metavar="FAMILY", help="deep family; default: smallest d_model / n_layers"),
        add("--wide", metavar="FAMILY", help="wide family; default: largest d_model / n_layers"),
        add(
            "--contrast",
            metavar="DEEP,WIDE",
            type=_family_pair,
            help="--deep and --wide in one option",
        ),
        add(
            "--audit",
            type=Path,
            metavar="FILE",
            help="learning-rate audit: lr_audit.json of study=lr_audit, or a folder of runs over a grid of "
            "learning rates; if a family fails the audit, the verdict is audit_failed",
        ),
        add(
            "--speed",
            type=Path,
            metavar="FILE",
            help="measured speeds of the shapes, from python -m slm speed: compares the families at equal decode latency "
            "and training time too; default: speed.json in the folder RUNS, if it exists",
        ),
        add(
            "--question",
            metavar="TEXT",
            default="",
            help="research question, printed at the top of the report",
        ),
        add(
            "--metric",
            metavar="COLUMN",
            help="column to compare instead of the loss, such as arc_easy_bits_per_byte in the models.csv of "
            "`slm evaluate`; smaller values must be better",
        ),
        add(
            "--pool-validation-sets",
            action="store_true",
            help="compare runs with different validation sets; default: use only the runs with the most common "
            "validation set",
        ),
    ]


def _report_name(text: str) -> str:
    if text not in REPORTS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a report; {nearest(text, REPORTS)}")
    return text


def _family_pair(text: str) -> tuple[str, str]:
    names = text.split(",")
    if len(names) != 2:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be two family names separated by a comma: DEEP,WIDE"
        )
    return names[0], names[1]


if __name__ == "__main__":
    sys.exit(main())
