"""What an engine inside the trainer's process must leave as it was: random states, threads, environment, the screen."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Iterator

import torch

RESTORED = ("LD_PRELOAD", "LOCAL_WORLD_SIZE")  # vLLM sets them for children of its own; ours must not inherit them


@contextlib.contextmanager
def own_state() -> Iterator[None]:
    """Keeps the caller's random states, threads and environment: vLLM in process seeds and sets its own."""
    import numpy as np

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    environment = {name: os.environ.get(name) for name in RESTORED}
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        torch.set_num_threads = set_threads  # the CPU worker puts a function that does nothing in its place
        torch.set_num_threads(threads)
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences start-up messages, those from C++ included; an exception carries what was held back as a note."""
    sys.stderr.flush()
    disabled, saved = logging.root.manager.disable, os.dup(2)
    with tempfile.TemporaryFile() as held, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception as error:
            held.seek(0)
            error.add_note(held.read()[-4000:].decode(errors="replace"))
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            logging.disable(disabled)
