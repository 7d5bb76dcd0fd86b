"""Tasks on all cores: each in a process of its own, forked from this one, so that nothing has to be sent to it.

Threads would share one interpreter lock, which costs a third of the speed. Where a process cannot be forked safely (no
fork on this system, or a GPU in use, whose threads do not survive it) the tasks run one after the other.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, ForkProcess
from typing import Any

import torch

from etr.errors import InputError

Report = Callable[[int], None]
Task = Callable[[Report], Any]  # does its work, reports its steps, returns something that can be pickled


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_all(tasks: Sequence[Task], progress: Callable[[int, int], None], done: Callable[[int, Any], None]) -> None:
    """Run all tasks; `progress` gets the number of a task and its step, `done` its number and result, as they come.

    Raises what a task raises, after ending the others, and InputError for a worker that was killed.
    """
    workers = min(cores(), len(tasks))
    if workers > 1 and "fork" in multiprocessing.get_all_start_methods() and not torch.cuda.is_initialized():
        _in_processes(tasks, workers, progress, done)
        return
    for number, task in enumerate(tasks):
        done(number, task(lambda step, number=number: progress(number, step)))  # type: ignore[misc]


def _in_processes(
    tasks: Sequence[Task], workers: int, progress: Callable[[int, int], None], done: Callable[[int, Any], None]
) -> None:
    context = multiprocessing.get_context("fork")
    waiting = list(enumerate(tasks))[::-1]
    running: dict[Connection, tuple[int, ForkProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                number, task = waiting.pop()
                running.update([_started(context, number, task)])
            for pipe in wait(list(running)):
                assert isinstance(pipe, Connection)
                number, process = running[pipe]
                kind, value = _received(pipe, process)
                if kind == "step":
                    progress(number, value)
                elif kind == "failed":
                    raise value
                else:
                    del running[pipe]
                    process.join()
                    done(number, value)
    finally:
        for _, process in running.values():
            process.kill()  # it holds nothing that could be left half done
            process.join()


def _started(context: ForkContext, number: int, task: Task) -> tuple[Connection, tuple[int, ForkProcess]]:
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(task, send), daemon=True)
    with warnings.catch_warnings():  # Python warns of forks beside threads; the worker takes no lock of theirs
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    send.close()
    return receive, (number, process)


def _received(pipe: Connection, process: ForkProcess) -> Any:
    try:
        return pickle.loads(pipe.recv_bytes())  # from our own child
    except EOFError:
        process.join()
        raise InputError(
            f"a worker process ended with exit code {process.exitcode}, perhaps for want of memory; use fewer --seeds"
        ) from None


def _work(task: Task, send: Connection) -> None:
    """The life of a worker. Ctrl-C goes to the parent, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)  # the tensors are small, and the other cores have their own work
    try:
        message = pickle.dumps(("done", task(lambda step: send.send_bytes(pickle.dumps(("step", step))))))
    except Exception as error:
        try:
            message = pickle.dumps(("failed", error))
        except Exception:  # an error that cannot be sent
            message = pickle.dumps(("failed", RuntimeError(f"{type(error).__name__}: {error}")))
    send.send_bytes(message)
