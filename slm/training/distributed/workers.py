"""The processes that train one run together, and what they agree on. Torch comes with the second one.

Rank 0 leads: it alone writes, and what it decides holds for all. An SlmError is raised in all of them at
the same place, by what is below. Any other error ends its own process; the others end with it, since
their connection to it breaks, or because torchrun or srun ends them.
"""

from __future__ import annotations

import atexit
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from slm.errors import PeerFailed, RunError, SlmError
from slm.training.distributed.rank import Place

if TYPE_CHECKING:
    from torch import Tensor

Answer = TypeVar("Answer")
PATIENCE = timedelta(
    days=7
)  # with a leader that prepares a corpus; one that died is noticed at once
FAREWELL = timedelta(minutes=5)  # for the leader to write its result and finish its mirror
LOST = ("gloo", "Connection reset", "Connection closed", "Broken pipe")


class Team:
    """`words` is the process group of what is agreed on the CPU, apart from the gradients' own."""

    def __init__(
        self, rank: int = 0, world_size: int = 1, local_rank: int = 0, words: Any = None
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.local_rank = local_rank
        self._words = words

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Wait for all at the end of the block; an error of one is raised in all.

        Nothing inside of the block may wait for the others.

        Raises:
            PeerFailed: if the error is another process's.
        """
        if self.world_size == 1:
            yield
            return
        from torch import distributed

        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        said: list[tuple[str, int] | None] = [None] * self.world_size
        told = None if own is None else (str(own), getattr(own, "exit_code", 1))
        distributed.all_gather_object(said, told, group=self._words)
        if own is not None:
            raise own
        for rank, words in enumerate(said):
            if words is not None:
                raise PeerFailed(f"process {rank}: {words[0]}", words[1])

    def decide(self, question: Callable[[], Answer]) -> Answer:
        """The leader's answer, or its error, in every process."""
        if self.world_size == 1:
            return question()
        from torch import distributed

        answers: list[Any] = [None]
        with self.together():
            if self.leads:
                answers = [question()]
        distributed.broadcast_object_list(answers, src=0, group=self._words)
        return answers[0]

    def in_turn(self, work: Callable[[], Answer]) -> Answer:
        """Everybody's own result of work that the leader does first."""
        done: list[Answer] = []
        for is_turn in (self.leads, not self.leads):
            with self.together():
                if is_turn:
                    done.append(work())
        return done[0]

    def sum(self, tensor: Tensor) -> Tensor:
        """Add the tensors of all processes up, in place, on the device that they are on."""
        if self.world_size > 1:
            from torch import distributed

            distributed.all_reduce(tensor)
        return tensor

    def most(self, number: int) -> Callable[[], int]:
        """Ask for the largest number of all processes; the answer is there when it is called for."""
        if self.world_size == 1:
            return lambda: number
        import torch
        from torch import distributed

        largest = torch.tensor(number)
        asked = distributed.all_reduce(
            largest, op=distributed.ReduceOp.MAX, group=self._words, async_op=True
        )
        assert asked is not None

        def answer() -> int:
            asked.wait()
            return int(largest)

        return answer

    def part(self) -> None:
        """Leave when all are done, so that nobody is ended in the middle of its work."""
        from torch import distributed

        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            # torchrun ends those that are left as soon as one has failed; all have ended here.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with suppress(RuntimeError):  # of somebody who is gone
            distributed.monitored_barrier(self._words, FAREWELL)


ALONE = Team()


@contextmanager
def assembled(place: Place | None, tell: Callable[[str], None]) -> Iterator[Team]:
    """The team that this process belongs to. The leader tells of an error that ends it.

    Raises:
        RunError: if a process of the team is gone.
    """
    if place is None:
        yield ALONE
        return
    team = _joined(place)
    try:
        yield team
    except SlmError as error:
        if team.leads:
            tell(str(error))
        error.was_shown = True
        team.part()
        raise
    except RuntimeError as error:
        if not any(sign in str(error) for sign in LOST):
            raise
        rule = "another process of this run has ended; the same command goes on from its checkpoint"
        raise RunError(rule) from error
    team.part()


def _joined(place: Place) -> Team:
    import torch
    from torch import distributed

    if not distributed.is_initialized():  # by an earlier job of this process
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            init_method=place.meeting_point,
            rank=place.rank,
            world_size=place.world_size,
        )
        atexit.register(distributed.destroy_process_group)
    words = distributed.new_group(backend="gloo", timeout=PATIENCE)
    return Team(place.rank, place.world_size, place.local_rank, words)
