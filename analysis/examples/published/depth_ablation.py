"""The ablation of depth and width in the MobileLLM paper (2402.14905), and the precision of its scores.

The rows are some of those in Table 11 (125M, 9 shapes) and Table 12 (350M, 10 shapes) of the paper. They come from summaries,
because the paper was not at hand: two independent ones agree on the accuracies at 125M, and one has those at 350M. All shapes
of a size have about the same number of parameters, and exploratory runs of the paper use 0.25T tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

VOCAB_SIZE, SEQ_LEN = 32_000, 2048
# Total parameters: the 30-layer model of the first size has 135M with untied embeddings (section 2.2); the nominal
# number at the second size.
PARAMETERS = {"125M": 135e6, "350M": 350e6}
# Examples in the public test or validation set of each of the eight tasks of the average
TASK_EXAMPLES = {
    "ARC-easy": 2376,
    "ARC-challenge": 1172,
    "BoolQ": 3270,
    "PIQA": 1838,
    "SIQA": 1954,
    "HellaSwag": 10_042,
    "OBQA": 500,
    "WinoGrande": 1267,
}


@dataclass(frozen=True)
class AblationModel:
    """A shape of the ablation.

    Attributes:
        size: nominal number of parameters.
        average: mean zero-shot accuracy on the eight tasks, in percent.
    """

    size: str
    n_layers: int
    d_model: int
    average: float

    @property
    def flops_per_token(self) -> float:
        """Training FLOPs per token at the full context if the total number of parameters is that of the size."""
        multiplied = (
            PARAMETERS[self.size] - VOCAB_SIZE * self.d_model
        )  # without the input embedding
        return 6 * multiplied + 6 * self.n_layers * self.d_model * SEQ_LEN

    @property
    def standard_error(self) -> float:
        """Sampling standard error of `average` in percentage points, for independent examples."""
        share = self.average / 100
        variances = [share * (1 - share) / n for n in TASK_EXAMPLES.values()]
        return 100 * math.sqrt(sum(variances)) / len(TASK_EXAMPLES)


ABLATION = (
    AblationModel("125M", 4, 1280, 43.3),
    AblationModel("125M", 12, 768, 43.9),
    AblationModel("125M", 30, 512, 44.8),
    AblationModel("125M", 62, 384, 44.7),
    AblationModel("350M", 5, 2048, 47.1),
    AblationModel("350M", 15, 1280, 48.7),
    AblationModel("350M", 32, 896, 49.8),
    AblationModel("350M", 66, 640, 49.5),
)
BEST = {"125M": ABLATION[2], "350M": ABLATION[6]}
USUAL = {"125M": ABLATION[1], "350M": ABLATION[5]}  # 12 and 15 layers
SHALLOW = {"125M": ABLATION[0], "350M": ABLATION[4]}  # 4 and 5 layers


@dataclass(frozen=True)
class DepthGain:
    """Accuracy of the best deep shape minus that of a shallower one at equal parameters, in percentage points.

    Attributes:
        other: the shallower shape.
        gain, standard_error: of the difference; both models count as independent samples of examples.
        flops_ratio: FLOPs of the deep shape / FLOPs of the shallower one.
        worth: gain that so many more FLOPs would give at the slope between the two sizes.
    """

    size: str
    other: AblationModel
    gain: float
    standard_error: float
    flops_ratio: float
    worth: float

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of `gain`."""
        half = 1.96 * self.standard_error
        return self.gain - half, self.gain + half


def points_per_log_flops() -> float:
    """Return the gain in percentage points per ln FLOPs from the best 125M shape to the best 350M shape."""
    small, large = BEST["125M"], BEST["350M"]
    ratio = large.flops_per_token / small.flops_per_token
    return (large.average - small.average) / math.log(ratio)


def depth_gain(other: AblationModel) -> DepthGain:
    """Compare the best deep shape with a shallower one of the same size."""
    deep = BEST[other.size]
    ratio = deep.flops_per_token / other.flops_per_token
    return DepthGain(
        other.size,
        other,
        deep.average - other.average,
        math.hypot(deep.standard_error, other.standard_error),
        ratio,
        points_per_log_flops() * math.log(ratio),
    )
