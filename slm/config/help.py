"""Help of train.py and sweep.py: Hydra prints it for `--help`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from slm.config.schema import field_descriptions
from slm.help_text import listing

UNDER_NAME = 6  # column of texts that are printed under long names
TRAIN = """\
usage: python train.py [GROUP=OPTION ...] [KEY=VALUE ...] [options]

Train one run. The same command continues an interrupted run and skips a finished one."""
TRAIN_EXAMPLES = {
    "python train.py": "train one deep-thin model, 1 to 2 minutes on a laptop",
    "python train.py experiment=smoke": "train a tiny model in seconds, to test the installation",
    "python train.py -m family=deep_thin,wide_shallow size=128k,256k": "train a grid of models",
}
SWEEP = """\
usage: python sweep.py study=NAME [action=ACTION] [GROUP=OPTION ...] [KEY=VALUE ...] [options]

Plan, run or report a study: models of several families at matched compute. The study sets the
families, sizes, budgets and seeds of its cells; the other keys are those of train.py."""
SWEEP_EXAMPLES = {
    "python sweep.py study=demo": "run a study and write its report",
    "python sweep.py study=micro action=plan": "print cells, cost and statistical power; train nothing",
    "python sweep.py study=micro hydra/launcher=slurm": "run the cells as Slurm jobs",
}
ACTIONS = {
    "(no action)": "run the study, then write the report",
    "plan": "print the cells, their cost and the statistical power; train nothing",
    "design": "search the best design at a cost, design.flops or design.hours; print its study file",
    "run": "run the cells that are not finished, without a report",
    "status": "print the state of each cell; exit code 3 if some are not finished",
    "report": "write the report on the finished cells",
    "watch": "serve a page on this machine that shows the study while it runs",
    "dashboard": "create or update the W&B workspace and report of the study",
    "sync": "upload the study's runs to W&B",
    "collect": "add the results of finished cells to the file study.results",
}
LAUNCHERS = {
    "local": "jobs share the cores or GPUs of this machine (default)",
    "basic": "one job after the other in this process",
    "slurm": "Slurm job array; needs the extra slurm",
    "ray": "tasks of a Ray cluster; needs the extra ray",
}
OPTIONS = {
    "--cfg job": "print the values that a command would use, check them, and exit",
    "--help": "print this text and exit",
    "--hydra-help": "print the help of Hydra and exit",
}
MULTIRUN = {"-m": "train every combination of the values separated by commas"}
FOOTER = "python -m slm --help lists the commands for shapes, data and trained models."


def train_help(conf_dir: Path) -> str:
    """Return the help of train.py as a template of Hydra."""
    sections = [TRAIN, listing("examples", TRAIN_EXAMPLES, UNDER_NAME)]
    return "\n\n".join([*sections, *_shared_sections(conf_dir, MULTIRUN)])


def sweep_help(conf_dir: Path) -> str:
    """Return the help of sweep.py as a template of Hydra."""
    sections = [
        SWEEP,
        listing("examples", SWEEP_EXAMPLES, UNDER_NAME),
        listing("actions; choose one with action=ACTION", ACTIONS),
        listing("launchers; choose one with hydra/launcher=LAUNCHER", LAUNCHERS),
    ]
    return "\n\n".join([*sections, *_shared_sections(conf_dir, {})])


def _shared_sections(conf_dir: Path, options: Mapping[str, str]) -> Iterator[str]:
    groups = sorted(each for each in conf_dir.iterdir() if each.is_dir() and each.name != "hydra")
    yield listing("options", {**options, **OPTIONS})
    yield listing(
        "config groups; choose an option with GROUP=OPTION",
        {
            group.name: ", ".join(sorted(each.stem for each in group.glob("*.yaml")))
            for group in groups
        },
    )
    yield listing(
        "keys; set one with KEY=VALUE. The defaults shown are those before the files in conf/",
        {
            f"{key}={_format(value)}": " ".join(text.split())
            for key, value, text in field_descriptions()
        },
        UNDER_NAME,
    )
    yield FOOTER


def _format(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ",".join(map(str, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
