"""Steps on end that are handed to the training loop at once. Torch-free.

Between two steps nothing is due, most of the time: no row, no checkpoint, no validation. A model of
fifty thousand parameters takes a step in milliseconds, of which a general training loop would need a
good part for itself, so it gets its steps in blocks that end where something is due.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator


def blocks(
    first_step: int, steps: int, every: Collection[int], at: Collection[int]
) -> Iterator[range]:
    """The steps from `first_step` to `steps`, cut after every multiple of `every` and after each `at`.

    Counts are of steps done: `every=[10]` cuts after step 9, when 10 are done.
    """
    start = first_step
    while start < steps:
        cuts = [start - start % period + period for period in every]
        end = min([steps, *cuts, *(cut for cut in at if cut > start)])
        yield range(start, end)
        start = end
