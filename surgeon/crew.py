"""Tasks done one after another, here or in several processes; one that fails stops no other."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from surgeon.errors import SurgeonError

Make = Callable[[], Any]
"""Makes what every task of a process needs, once."""
Work = Callable[[Any, Any], Any]
"""Takes that and a task to a result."""


@dataclass(frozen=True)
class Failure:
    """A task that came to nothing."""

    why: str
    """One line, or as many as a user's mistake takes."""


def run_tasks(
    tasks: Sequence[Any], make: Make, work: Work, *, jobs: int
) -> Iterator[tuple[Any, Any]]:
    """Do tasks, each to the end, in the order given or as processes come free.

    With several jobs each has a process of its own, which shares the processor's cores with the
    others, ends with this one, and leaves Ctrl-C to it. What goes to a process and comes back is
    pickled.

    Args:
        tasks: What `work` is called with.
        make: Called once per process.
        work: Does one task.
        jobs: Processes at most; 1 works in this one.

    Yields:
        A task with its result, or with a `Failure` where `work` raised or its process died.
    """
    if not tasks:
        return
    if jobs == 1:
        made = make()
        for task in tasks:
            yield task, _attempt(work, made, task)
        return
    crew = _Crew(make, work, jobs)
    try:
        yield from crew.run(tasks)
    finally:
        crew.dismiss()


def _attempt(work: Work, made: Any, task: Any) -> Any:
    try:
        return work(made, task)
    except SurgeonError as error:
        return Failure(str(error))
    except Exception as error:  # a fault of one task, whatever it is, is told beside the others
        return Failure(" ".join(f"{type(error).__name__}: {error}".split()))


@dataclass(frozen=True, eq=False)
class _Crew:
    make: Make
    work: Work
    jobs: int
    busy: dict[Connection, tuple[BaseProcess, Any]] = field(default_factory=dict)
    """Our end of a process's pipe to the process and its task."""

    def run(self, tasks: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        waiting = deque(tasks)
        for _ in range(min(self.jobs, len(tasks))):
            self._start(waiting.popleft())
        while self.busy:
            ready = wait(list(self.busy))
            for ours in [connection for connection in self.busy if connection in ready]:
                process, task = self.busy.pop(ours)
                try:
                    result, alive = ours.recv(), True
                except EOFError:
                    process.join()
                    result, alive = _death(process), False
                if waiting and alive:
                    self._give(ours, process, waiting.popleft())
                elif waiting:
                    self._start(waiting.popleft())
                elif alive:
                    ours.send(None)
                yield task, result

    def _start(self, task: Any) -> None:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        args = (theirs, self.make, self.work, threads)
        process = context.Process(target=_serve, args=args, daemon=True)
        process.start()
        theirs.close()  # so that our end closes when the process dies
        self._give(ours, process, task)

    def _give(self, ours: Connection, process: BaseProcess, task: Any) -> None:
        self.busy[ours] = process, task
        ours.send((task,))

    def dismiss(self) -> None:
        """End what is still at work."""
        for process, _ in self.busy.values():
            process.terminate()
            process.join()


def _death(process: BaseProcess) -> Failure:
    code = process.exitcode or 0
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return Failure(f"its process ended by {how}; with fewer jobs each has more memory")


def _serve(connection: Connection, make: Make, work: Work, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    made = make()
    while (given := connection.recv()) is not None:
        connection.send(_attempt(work, made, given[0]))


def _leave_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
