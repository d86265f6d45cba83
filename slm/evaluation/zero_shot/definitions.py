"""The zero-shot tasks: their definitions, the fields of their local files, and which field clusters the examples.

A task is defined by a YAML file of lm-eval. For local files with other fields than the hub's data set, the
definition is in `local_definitions`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
Rule = Callable[[Any, Row], str]
"""Returns the rule that the value of a field breaks, given the whole row; an empty text if it is valid."""


def text(value: Any, row: Row) -> str:
    return "" if isinstance(value, str) and value.strip() else "must be text that is not empty"


def any_text(value: Any, row: Row) -> str:
    return "" if isinstance(value, str) else "must be text"


def texts(value: Any, row: Row) -> str:
    is_list = isinstance(value, list) and len(value) > 1 and not any(text(v, row) for v in value)
    return "" if is_list else "must be a list of at least two texts"


def choices(value: Any, row: Row) -> str:
    if not isinstance(value, Mapping) or not {"text", "label"} <= set(value):
        return "must be an object with the lists text and label"
    if texts(value["text"], row) or not isinstance(value["label"], list):
        return "must have the lists text and label, with at least two texts"
    lengths = len(value["text"]), len(value["label"])
    return "" if lengths[0] == lengths[1] else f"has {lengths[0]} texts but {lengths[1]} labels"


def label_of_choices(value: Any, row: Row) -> str:
    labels = row["choices"]["label"]
    return "" if value in labels else f"must be one of {', '.join(map(str, labels))}"


def label_of_endings(value: Any, row: Row) -> str:
    count = len(row["endings"])
    is_valid = str(value).isdecimal() and int(value) < count
    return "" if is_valid else f"must be 0 to {count - 1}, the number of the right ending"


def sentence_with_blank(value: Any, row: Row) -> str:
    is_valid = isinstance(value, str) and value.count("_") == 1 and value.split("_")[1].strip()
    return "" if is_valid else "must be a sentence with one blank _ and text after it"


def one_of(*allowed: object) -> Rule:
    """Return the rule that a value is one of these; 1, "1" and true are different values."""

    def rule(value: Any, row: Row) -> str:
        is_valid = any(type(value) is type(each) and value == each for each in allowed)
        return "" if is_valid else f"must be one of {', '.join(map(repr, allowed))}"

    return rule


@dataclass(frozen=True)
class Layout:
    """Fields of a local file, and whether our own definition reads them instead of lm-eval's.

    The order of the fields is that of the checks: a rule may use the fields before it.
    """

    fields: Mapping[str, Rule]
    is_ours: bool = False


@dataclass(frozen=True)
class Definition:
    """A zero-shot task.

    Attributes:
        folder: folder of lm-eval's definition, below lm_eval/tasks.
        layouts: accepted fields of a local file; the first one is the hub's.
        files: names of the local file, in order of preference.
        cluster: field that examples with common text share, such as a passage; None: the examples are independent.
    """

    folder: str
    layouts: tuple[Layout, ...]
    files: tuple[str, ...]
    cluster: str | None = None
    aliases: tuple[str, ...] = field(default=())


QUESTION = {"question": text, "choices": choices, "answerKey": label_of_choices}
BOOLQ = {"passage": text, "question": text}
ENDINGS = {"endings": texts, "label": label_of_endings}
SOCIAL_IQA = dict.fromkeys(("context", "question", "answerA", "answerB", "answerC"), text)
STEM = {"question_stem": text, "choices": choices, "answerKey": label_of_choices}
DEFINITIONS = {
    "arc_easy": Definition("arc", (Layout(QUESTION),), ("arc_easy.jsonl",)),
    "arc_challenge": Definition("arc", (Layout(QUESTION),), ("arc_challenge.jsonl",)),
    "boolq": Definition(
        "super_glue/boolq",
        (
            Layout({**BOOLQ, "label": one_of(0, 1)}),
            Layout({**BOOLQ, "answer": one_of(False, True)}, is_ours=True),
        ),
        ("boolq.jsonl",),
        cluster="passage",
    ),
    "piqa": Definition(
        "piqa",
        (Layout({**dict.fromkeys(("goal", "sol1", "sol2"), text), "label": one_of(0, 1)}),),
        ("piqa.jsonl",),
        cluster="goal",
    ),
    "social_iqa": Definition(
        "siqa",
        (Layout({**SOCIAL_IQA, "label": one_of("1", "2", "3")}),),
        ("social_iqa.jsonl", "siqa.jsonl"),
        cluster="context",
        aliases=("siqa",),
    ),
    "hellaswag": Definition(
        "hellaswag",
        (
            Layout({"activity_label": text, "ctx_a": text, "ctx_b": any_text, **ENDINGS}),
            Layout({"activity_label": text, "ctx": text, **ENDINGS}, is_ours=True),
        ),
        ("hellaswag.jsonl",),
        cluster="source_id",
    ),
    "openbookqa": Definition("openbookqa", (Layout(STEM),), ("openbookqa.jsonl",)),
    "winogrande": Definition(
        "winogrande",
        (
            Layout(
                {
                    "sentence": sentence_with_blank,
                    "option1": text,
                    "option2": text,
                    "answer": one_of("1", "2"),
                }
            ),
        ),
        ("winogrande.jsonl",),
    ),
    "lambada_openai": Definition(
        "lambada",
        (Layout({"text": text}), Layout({"context": text, "continuation": text}, is_ours=True)),
        ("lambada_openai.jsonl", "lambada.jsonl"),
        aliases=("lambada",),
    ),
    "wikitext": Definition(
        "wikitext",
        (Layout({"page": text}),),
        ("wikitext.jsonl", "wikitext.txt", "wiki.test.raw", "wiki.test.tokens"),
    ),
}
NAMES = {alias: name for name, each in DEFINITIONS.items() for alias in (name, *each.aliases)}
"""Name of a task for each name that is accepted."""
