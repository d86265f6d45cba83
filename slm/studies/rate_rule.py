"""Peak learning rate by training tokens, the same for all families of a study."""

from __future__ import annotations

from dataclasses import dataclass

from slm.config.schema import Config
from slm.formatting import short_count
from slm.rounding import round_to_three_digits


@dataclass(frozen=True)
class RateRule:
    """lr * (tokens / reference_tokens)^-exponent.

    With all else equal, the best peak rate falls with the number of training tokens as a power law (Bjorck et al.,
    arXiv 2409.19913).
    """

    lr: float
    reference_tokens: int
    exponent: float

    @classmethod
    def of(cls, config: Config) -> RateRule:
        """Return the rule of a study's config; its exponent is 0 without a rule."""
        study = config.study
        if not study.lr_tokens_exponent:
            return cls(config.optimizer.lr, study.lr_reference_tokens, 0.0)
        lr = config.optimizer.lr if study.lr_reference is None else study.lr_reference
        return cls(lr, study.lr_reference_tokens, study.lr_tokens_exponent)

    @property
    def is_constant(self) -> bool:
        return self.exponent == 0

    def rate(self, tokens: float) -> float:
        """Return the peak learning rate of a run, rounded to 3 digits because it is part of the run's identity."""
        if self.is_constant:
            return self.lr
        return round_to_three_digits(self.lr * (tokens / self.reference_tokens) ** -self.exponent)

    def __str__(self) -> str:
        if self.is_constant:
            return f"{self.lr:g}"
        reference = short_count(self.reference_tokens)
        return f"{self.lr:g} * (tokens / {reference})^-{self.exponent:g}"
