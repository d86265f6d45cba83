"""The processes that train one run together, and how they agree on decisions and errors.

Rank 0 alone writes files and logs, and its decisions hold for every rank. The methods below raise an error of one
rank on all ranks at the same place. Any other error ends its own process at once; the launcher (torchrun, or
srun with --kill-on-bad-exit) or the broken connection then ends the other ranks. Imports torch only if there are
several processes.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from slm.errors import Diverged, Interrupted, PeerFailed, SlmError
from slm.training.distributed.rank import Placement

if TYPE_CHECKING:
    from torch import Tensor

Result = TypeVar("Result")
CONTROL_TIMEOUT = timedelta(days=7)  # rank 0 may prepare a corpus; a dead rank is noticed at once
SHUTDOWN_TIMEOUT = timedelta(minutes=5)  # rank 0 writes its result and finishes W&B meanwhile
CONNECTION_LOST = ("gloo", "Connection reset", "Connection closed", "Broken pipe")
PEER_ENDED = "another process of this run has ended; the same command continues from its checkpoint"


@dataclass(frozen=True)
class Workers:
    """One process and its connection to the other processes of its run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    control_group: Any = None
    """Process group of gloo for control messages, apart from the group that averages gradients."""

    @property
    def is_rank_zero(self) -> bool:
        return self.rank == 0

    @contextmanager
    def sync_errors(self) -> Iterator[None]:
        """Wait for all ranks at the end of the block; raise an error of one rank on all.

        The block must not contain a collective operation, which a failed rank would not join.

        Raises:
            PeerFailed: if the error is another rank's.
        """
        if self.world_size == 1:
            yield
            return
        from torch import distributed

        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        own = None if error is None else (str(error), getattr(error, "exit_code", 1))
        by_rank: list[tuple[str, int] | None] = [None] * self.world_size
        distributed.all_gather_object(by_rank, own, group=self.control_group)
        if error is not None:
            error.is_shared = True  # type: ignore[attr-defined]
            raise error
        for rank, failure in enumerate(by_rank):
            if failure is not None:
                raise PeerFailed(f"process {rank}: {failure[0]}", failure[1])

    def broadcast_from_rank0(self, compute: Callable[[], Result]) -> Result:
        """Return the result of `compute` on rank 0, or raise its error, on every rank."""
        if self.world_size == 1:
            return compute()
        from torch import distributed

        results: list[Any] = [None]
        with self.sync_errors():
            if self.is_rank_zero:
                results = [compute()]
        distributed.broadcast_object_list(results, src=0, group=self.control_group)
        return results[0]

    def rank_zero_first(self, compute: Callable[[], Result]) -> Result:
        """Call `compute` on rank 0, then on the other ranks; return each rank's own result."""
        results: list[Result] = []
        for is_turn in (self.is_rank_zero, not self.is_rank_zero):
            with self.sync_errors():
                if is_turn:
                    results.append(compute())
        return results[0]

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all ranks in place, on its device, and return it."""
        if self.world_size > 1:
            from torch import distributed

            distributed.all_reduce(tensor)
        return tensor

    def all_reduce_min(self, number: int) -> int:
        """Return the minimum over all ranks."""
        return -self.all_reduce_max_async(-number)()

    def all_reduce_max_async(self, number: int) -> Callable[[], int]:
        """Start the maximum over all ranks; the returned function waits for it and returns it."""
        if self.world_size == 1:
            return lambda: number
        import torch
        from torch import distributed

        largest = torch.tensor(number)
        work = distributed.all_reduce(
            largest, op=distributed.ReduceOp.MAX, group=self.control_group, async_op=True
        )
        assert work is not None

        def wait() -> int:
            work.wait()
            return int(largest)

        return wait

    def shutdown_barrier(self) -> None:
        """Wait until all ranks are done, so that torchrun ends none of them in the middle of its work."""
        from torch import distributed

        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            # torchrun sends SIGTERM to the remaining ranks when one exits with an error.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with suppress(RuntimeError):  # a rank that is gone
            distributed.monitored_barrier(self.control_group, SHUTDOWN_TIMEOUT)


SINGLE_PROCESS = Workers()


@contextmanager
def joined_workers(
    placement: Placement | None, log_error: Callable[[str], None]
) -> Iterator[Workers]:
    """Join the process group of the launcher inside the `with` block; rank 0 logs a shared error.

    An error that the other ranks do not share ends the process: unwinding could block in a collective
    operation of NCCL, and the launcher would never see the process die.

    Raises:
        Exception: the error that all ranks share.
    """
    if placement is None:
        yield SINGLE_PROCESS
        return
    workers = _join(placement)
    try:
        yield workers
    except Exception as error:
        if is_shared(error):
            if isinstance(error, SlmError):
                if workers.is_rank_zero and not error.was_shown:
                    log_error(str(error))
                error.was_shown = True
            workers.shutdown_barrier()
            raise
        code = SlmError.exit_code
        if isinstance(error, SlmError):
            print(f"process {workers.rank}: {error}", file=sys.stderr)
            code = error.exit_code
        elif any(sign in str(error) for sign in CONNECTION_LOST):
            print(PEER_ENDED, file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    except KeyboardInterrupt:
        atexit.unregister(_destroy_process_group)  # it could block on ranks that still compute
        raise
    workers.shutdown_barrier()


def is_shared(error: Exception) -> bool:
    """Return whether all ranks raise an error: one of `Workers`, a divergence, or a stop signal."""
    return hasattr(error, "is_shared") or isinstance(error, PeerFailed | Diverged | Interrupted)


def _join(placement: Placement) -> Workers:
    import torch
    from torch import distributed

    if not distributed.is_initialized():  # by an earlier job of this process
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            init_method=placement.init_method,
            rank=placement.rank,
            world_size=placement.world_size,
        )
        atexit.register(_destroy_process_group)
    group = distributed.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
    return Workers(placement.rank, placement.world_size, placement.local_rank, group)


def _destroy_process_group() -> None:
    from torch import distributed

    distributed.destroy_process_group()
