"""Worker processes that grade with a wall-clock limit for each answer; one that hangs or dies is replaced.

A thread cannot be stopped, and a signal handler waits for C code to return. A process can be killed in the middle of
anything. Workers are forked from a small server that has imported everything once, so a new one costs milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any, Literal

from etr.errors import InputError
from etr.llm.items import Item
from etr.llm.rewards.worker import serve

START_SECONDS = 120.0  # for imports; a user's module that needs longer is stuck
Job = tuple[Item, str]
Outcome = tuple[Literal["value", "wrong", "error", "timeout", "died"], Any]


@dataclass
class Worker:
    """One process, the pipe to it, the job it has and when that is over."""

    process: Any
    connection: Connection
    deadline: float
    ready: bool = False
    job: int | None = None

    def end(self) -> None:
        """Kill it and what it has started; it may already be dead."""
        pid = self.process.pid
        if self.ready and sys.platform != "win32":  # before that it may not yet lead a group of its own
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.connection.close()


class Pool:
    """Workers that all hold the score `spec`. Raises InputError when it cannot be built."""

    def __init__(self, spec: str, workers: int, seconds: float) -> None:
        self.spec, self.seconds = spec, seconds
        self.workers: list[Worker] = []
        try:
            self.workers += [self._start() for _ in range(workers)]
            while not any(worker.ready for worker in self.workers):
                self._listen([])
        except BaseException:
            self.close()
            raise

    def map(self, jobs: Sequence[Job]) -> list[Outcome]:
        """The outcome of every job, in their order; one that takes longer than the limit is ("timeout", seconds)."""
        outcomes: list[Outcome | None] = [None] * len(jobs)
        waiting = deque(range(len(jobs)))
        while any(outcome is None for outcome in outcomes):
            for worker in self.workers:
                if waiting and worker.ready and worker.job is None:
                    self._give(worker, waiting.popleft(), jobs)
            self._listen(outcomes)
        return [outcome for outcome in outcomes if outcome is not None]

    def close(self) -> None:
        """End all workers, whatever they are doing."""
        for worker in self.workers:
            worker.end()
        self.workers = []

    def _give(self, worker: Worker, job: int, jobs: Sequence[Job]) -> None:
        worker.job, worker.deadline = job, time.monotonic() + self.seconds
        with suppress(OSError):  # it died while idle; `_listen` sees that next
            worker.connection.send(jobs[job])

    def _listen(self, outcomes: list[Outcome | None]) -> None:
        """Wait for the next reply, death or deadline among the busy workers, and act on all that there are."""
        busy = [worker for worker in self.workers if not worker.ready or worker.job is not None]
        patience = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
        spoken = set(map(id, wait([h for w in busy for h in (w.connection, w.process.sentinel)], patience)))
        for worker in busy:
            if id(worker.connection) in spoken or not worker.process.is_alive():
                self._hear(worker, outcomes)
            elif time.monotonic() >= worker.deadline:
                self._lose(worker, ("timeout", self.seconds), outcomes)

    def _hear(self, worker: Worker, outcomes: list[Outcome | None]) -> None:
        try:
            reply: tuple[Any, Any] = worker.connection.recv() if worker.connection.poll() else ("died", None)
        except (EOFError, OSError):
            reply = ("died", None)
        kind, value = reply
        if kind == "refused":
            raise InputError(value)
        if kind == "died":
            worker.process.join(1.0)
            self._lose(worker, ("died", worker.process.exitcode), outcomes)
        elif kind == "ready":
            worker.ready = True
        elif worker.job is not None:
            outcomes[worker.job], worker.job = (kind, value), None

    def _lose(self, worker: Worker, outcome: Outcome, outcomes: list[Outcome | None]) -> None:
        """Replace a worker that is dead or late; its answer has that outcome."""
        worker.end()
        self.workers.remove(worker)
        if worker.job is None:  # not a single answer graded: the next one would fare no better
            what = f"did not start within {START_SECONDS:.0f} s" if outcome[0] == "timeout" else "died at its start"
            raise InputError(f"a process for the reward '{self.spec}' {what}; import its file by hand to see why")
        outcomes[worker.job] = outcome
        self.workers.append(self._start())

    def _start(self) -> Worker:
        """A new process; it says when it is ready."""
        here, there = multiprocessing.Pipe()
        context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        if sys.platform == "linux":
            context.set_forkserver_preload([serve.__module__])
        process = context.Process(target=serve, args=(there, self.spec, os.getcwd(), self.seconds), daemon=True)
        with _no_main():
            process.start()
        there.close()
        return Worker(process, here, time.monotonic() + START_SECONDS)


@contextmanager
def _no_main() -> Iterator[None]:
    """Hide the running script: a worker needs nothing of it, and importing it again would start training twice."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
